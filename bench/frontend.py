"""The front-end without model work: server with a fake engine on one core, client on the other.

python bench/frontend.py [--streams 256] [--rate 30] [--seconds 10]

The fake engine stands behind the real LLM class (processor, admission, detokenizer), in the server's own process and
paid for by its core. Two measurements: `paced`, streams that each get tokens at a fixed rate, where the time from the
engine's event to its arrival at the client is the added latency; and `flood`, tokens as fast as they can be taken.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import json
import multiprocessing
import os
import re
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPT = "Go on"
HOST = "127.0.0.1"


# ---- the server: real in all but its engine -------------------------------------------------------------------------


class FakeTransport:
    """A token is the last digit of its step's number, so that the client knows when it was made: `stamps[step]`."""

    def __init__(self, rate: float, num_tokens: int, digits: list[int], stamps: Any) -> None:
        self.rate, self.num_tokens, self.digits, self.stamps = rate, num_tokens, digits, stamps
        self.open: dict[str, int] = {}

    async def start(self, on_report: Callable[[Any], None], on_death: Callable[[str], None]) -> None:
        from vl2.core.stats import ModelInfo
        from vl2.engine.protocol import Ready

        self.on_report = on_report
        on_report(Ready(ModelInfo(4096, 18, 1000, "cpu", "float32", 1, 1, 256, 16, "vl2-fake")))
        self.task = asyncio.ensure_future(self.step_for_ever())

    async def step_for_ever(self) -> None:
        """A step is a report with an event of every open request, as a real engine's."""
        from vl2.core.types import FinishReason, TokenEvent
        from vl2.engine.protocol import Events

        next_s, step = time.perf_counter(), 0
        while True:
            next_s = max(next_s + 1 / self.rate, time.perf_counter()) if self.rate else 0
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()) if self.rate else 0)
            events = []
            for request_id, done in list(self.open.items()):
                is_last = done + 1 == self.num_tokens
                token = self.digits[step % 10]
                events.append(TokenEvent(request_id, 0, token, finish_reason=FinishReason.LENGTH if is_last else None))
                if is_last:
                    del self.open[request_id]
                else:
                    self.open[request_id] = done + 1
            if events:
                self.stamps[step % len(self.stamps)] = time.perf_counter()
                self.on_report(Events(events))
                step += 1

    def send(self, command: Any) -> None:
        from vl2.engine.protocol import Abort, Add, Ping, Pong

        match command:
            case Add(request):
                self.open[request.request_id] = 0
            case Abort(request_id):
                self.open.pop(request_id, None)
            case Ping():
                self.on_report(Pong())

    def kill(self, reason: str) -> None: ...

    async def stop(self) -> None:
        self.task.cancel()


def serve(listener: socket.socket, core: int, rate: float, num_tokens: int, stamps: Any) -> None:
    os.sched_setaffinity(0, {core})
    import uvicorn

    from vl2 import LLM
    from vl2.core.config import EngineConfig, ServerConfig
    from vl2.engine.group import EngineGroup
    from vl2.server.app import create_app

    config = EngineConfig(max_queue=8192)
    llm = LLM("nano", engine=config)
    digits = [llm.processor.tokenizer.encode(str(digit))[0] for digit in range(10)]
    llm.client = EngineGroup(lambda _: FakeTransport(rate, num_tokens, digits, stamps), config)
    server = uvicorn.Server(uvicorn.Config(create_app(llm, ServerConfig()), log_config=None, access_log=False))
    server.run(sockets=[listener])


# ---- the client -----------------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """A request under way, and all that was read of its answer. Nothing is looked into before all have ended, so that
    a client on one core is no slower than the server.
    """

    socket: socket.socket
    reads: list[tuple[float, bytes]] = field(default_factory=list)

    @classmethod
    def open(cls, port: int, num_tokens: int) -> Stream:
        body = json.dumps({"messages": [{"role": "user", "content": PROMPT}], "stream": True, "max_tokens": num_tokens})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        stream = cls(socket.create_connection((HOST, port)))
        stream.socket.sendall((head + f"Content-Length: {len(body)}\r\n\r\n{body}").encode())
        return stream

    def read(self) -> bool:
        """Whether this was the end."""
        data = self.socket.recv(65536)
        assert data, "the stream broke"
        self.reads.append((time.perf_counter(), data))
        return data.endswith(b"0\r\n\r\n")  # the last chunk of its body

    def events(self) -> list[tuple[float, bytes]]:
        """(arrival, text) of each event; one that arrives in two reads is there with the second."""
        found, rest = [], b""
        for arrival, data in self.reads:
            *whole, rest = (rest + data).split(b"\n\n")
            texts = [re.search(rb'"content":"(\d+)"', event) for event in whole]
            found += [(arrival, match[1]) for match in texts if match is not None]
        return found


def measure(port: int, num_streams: int, num_tokens: int) -> tuple[list[list[tuple[float, bytes]]], float]:
    """The events of each stream, and the seconds until the last one's end."""
    started_s = time.perf_counter()
    streams = {stream.socket.fileno(): stream for stream in (Stream.open(port, num_tokens) for _ in range(num_streams))}
    polling = select.epoll()
    for fd in streams:
        polling.register(fd, select.EPOLLIN)
    num_open = num_streams
    while num_open:
        for fd, _ in polling.poll():
            if streams[fd].read():
                polling.unregister(fd)
                num_open -= 1
    seconds = time.perf_counter() - started_s
    for stream in streams.values():
        stream.socket.close()
    return [stream.events() for stream in streams.values()], seconds


def latencies_ms(streams: list[list[tuple[float, bytes]]], stamps: list[float]) -> list[float]:
    """From the engine's event to the client: the last step with the token's digit before its arrival made it."""
    found = []
    for arrival, text in itertools.chain.from_iterable(streams):
        last = bisect.bisect_right(stamps, arrival) - 1
        for digit in text:
            step = last - (last - (digit - ord("0"))) % 10
            found.append((arrival - stamps[step]) * 1000)
    return sorted(found)


def cpu_s_of(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().split()
    return sum(map(float, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def run(name: str, num_streams: int, rate: float, num_tokens: int) -> dict[str, Any]:
    listener = socket.create_server((HOST, 0), backlog=2048)
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    stamps = context.Array("d", 100_000, lock=False)
    server = context.Process(target=serve, args=(listener, cores[0], rate, num_tokens, stamps))
    server.start()
    try:
        os.sched_setaffinity(0, {cores[-1]})
        port = listener.getsockname()[1]
        measure(port, 1, 4)
        before_s = cpu_s_of(server.pid)
        streams, seconds = measure(port, num_streams, num_tokens)
        cpu_s = cpu_s_of(server.pid) - before_s
    finally:
        server.kill()
        server.join()
        os.sched_setaffinity(0, cores)
    tokens, events = num_streams * num_tokens, sum(map(len, streams))
    assert all(sum(len(text) for _, text in stream) == num_tokens for stream in streams), "a stream lacks tokens"
    result: dict[str, Any] = {"name": name, "streams": num_streams, "tokens_s": round(tokens / seconds)}
    result |= {
        "tokens_an_event": round(tokens / events, 2),
        "server_us_a_token": round(cpu_s / tokens * 1e6, 1),
        "seconds": round(seconds, 1),
    }
    if rate:
        late = latencies_ms(streams, [stamp for stamp in stamps if stamp])
        result |= {"rate": rate, "added_p50_ms": round(statistics.median(late), 2)}
        result["added_p99_ms"] = round(late[int(len(late) * 0.99)], 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    num_tokens = int(given.seconds * given.rate)
    print(json.dumps(run("paced", given.streams, given.rate, num_tokens)))
    print(json.dumps(run("flood", given.streams, 0, 1000)), file=sys.stdout)


if __name__ == "__main__":
    main()
