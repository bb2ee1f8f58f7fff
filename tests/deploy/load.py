"""Questions to an address, streamed and not, and what became of each."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx

from tests.e2e.server_process import LIMIT_S

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "Who are you?"}]
TIMEOUT = httpx.Timeout(LIMIT_S, pool=None)


@dataclass(frozen=True)
class Outcome:
    """`problem` is empty for a whole answer."""

    is_stream: bool
    problem: str
    num_events: int


@dataclass
class Load:
    """`concurrency` clients that ask until `num_requests` questions are asked and `stop` was called.

    Every second question is streamed, unless `is_stream` says which.
    """

    url: str
    concurrency: int
    num_requests: int
    max_tokens: int = 24
    is_stream: Callable[[int], bool] = lambda number: number % 2 == 0
    outcomes: list[Outcome] = field(default_factory=list)
    num_begun: int = 0  # streams with a first event
    _is_stopped: bool = False

    def stop(self) -> None:
        self._is_stopped = True

    async def run(self) -> None:
        numbers = itertools.count()
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with httpx.AsyncClient(timeout=TIMEOUT, limits=limits) as client:
            await asyncio.gather(*(self._ask_on(client, numbers) for _ in range(self.concurrency)))

    async def _ask_on(self, client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
        for number in numbers:
            if self._is_stopped and number >= self.num_requests:
                return
            is_stream, num_events, status = self.is_stream(number), 0, 0
            body = {"model": "default", "messages": QUESTION, "max_tokens": self.max_tokens, "ignore_eos": True}
            last = ""
            try:
                request = client.stream("POST", self.url + CHAT, json=body | {"stream": is_stream})
                async with request as response:
                    status = response.status_code
                    async for line in response.aiter_lines():
                        if line.startswith("data:"):
                            self.num_begun += num_events == 0
                            num_events += 1
                        last = line or last
                problem = "" if status == 200 and _is_whole(last, is_stream) else f"{status}, ended with {last[:200]!r}"
            except httpx.HTTPError as error:
                problem = f"{status}, {error!r}"
            self.outcomes.append(Outcome(is_stream, problem, num_events))

    @property
    def problems(self) -> list[str]:
        return [outcome.problem for outcome in self.outcomes if outcome.problem]


def _is_whole(last: str, is_stream: bool) -> bool:
    if is_stream:
        return last == "data: [DONE]"
    return json.loads(last)["usage"]["completion_tokens"] > 0
