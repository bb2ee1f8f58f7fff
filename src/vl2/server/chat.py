"""What all dialects of the API share: ask the model, measure its answer, and let go of it in every case."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from vl2.core.errors import EngineError, InvalidRequest, NotReady, UnknownModel
from vl2.core.interface import ChatModel
from vl2.core.types import Delta, FinishReason, Message, Prompt, QueueOptions, SamplingParams, Usage, fold_deltas
from vl2.server.access import RequestRecord
from vl2.server.answer import Answer
from vl2.server.fetch import Fetch
from vl2.server.metrics import Metrics, TokenClock
from vl2.server.rates import Pace, Rates
from vl2.server.results import HEADER, ResultCache, request_digest
from vl2.server.tenants import Key
from vl2.server.tools import Tools, with_tools
from vl2.server.turns import Reader, Turn

DEFAULT_MODEL = "default"  # a name that every server answers to


ReadFileOf = Callable[[str, str], Awaitable[bytes]]


@dataclass(frozen=True)
class Question:
    """What every dialect's body comes down to."""

    turns: list[Turn]
    params: SamplingParams
    options: QueueOptions = QueueOptions()
    tools: Tools | None = None

    def __post_init__(self) -> None:
        if self.tools is not None and self.params.grammar is not None:
            raise InvalidRequest("tools and a format of the answer cannot be combined; send one of them", param="tools")

    @property
    def sampling(self) -> SamplingParams:
        """With the grammar of the tools."""
        return self.params if self.tools is None else dataclasses.replace(self.params, grammar=self.tools.grammar())


@dataclass(frozen=True)
class ChatService:
    llm: ChatModel
    model_name: str
    fetch: Fetch
    metrics: Metrics
    max_pictures: int | None = None  # of one request; None: what the context holds
    is_cache_shared: bool = False  # between tenants
    read_file: ReadFileOf | None = None  # tenant, id → an uploaded file's bytes
    results: ResultCache | None = None
    has_many_tenants: Callable[[], bool] = lambda: False
    rates: Rates = field(default_factory=Rates)

    @property
    def is_told_little(self) -> bool:
        return self.is_cache_shared and self.has_many_tenants()

    def check_model(self, name: str | None) -> None:
        """Raises: UnknownModel."""
        if name not in (None, DEFAULT_MODEL, self.model_name):
            raise UnknownModel(
                f"the model {name!r} is not served here; this is {self.model_name!r} (or {DEFAULT_MODEL!r})",
                param="model",
            )

    def check_ready(self) -> None:
        """Raises: NotReady."""
        if self.llm.is_failed:
            raise NotReady("the engine died and could not be started again; restart the server", retry_after_s=60)
        if not self.llm.is_ready:
            raise NotReady("the model is loading, or its engine is starting again; try again in a moment")

    def reader(self, tenant: str) -> Reader:
        """Valid while the model is ready."""

        async def read_file(file_id: str) -> bytes:
            if self.read_file is None:
                raise InvalidRequest("this server keeps no files; --state-dir turns them on")
            return await self.read_file(tenant, file_id)

        most = self.llm.info.max_prompt_tiles if self.max_pictures is None else self.max_pictures
        return Reader(self.fetch, read_file, self.llm.pdf_pages, most)

    async def messages(self, question: Question, key: Key) -> list[Message]:
        """Everything that the model is told. Raises: RequestError."""
        messages = await self.reader(key.tenant).messages(question.turns)
        return messages if question.tools is None else with_tools(messages, question.tools)

    async def prompt(self, question: Question, record: RequestRecord, key: Key) -> Prompt:
        """What the model would see, without asking it. Raises: RequestError, NotReady, DeadlineExceeded."""
        self.check_ready()
        record.set_deadline()
        messages = await record.in_time(self.messages(question, key))
        return await record.in_time(self.llm.process(messages, self.tenant_of(key)))

    def tenant_of(self, key: Key) -> str:
        """Whose earlier pictures and prefixes a request may meet."""
        return "" if self.is_cache_shared else key.tenant

    def options_of(self, question: Question, key: Key, left_s: float | None = None) -> QueueOptions:
        """With what the key decides: whose the request is, and how early it may come. `left_s`: until its deadline."""
        priority = question.options.priority
        if key.priority is not None or self.has_many_tenants():
            priority = min(100, (key.priority or 0) + max(0, priority))
        deadlines = [limit for limit in (question.options.deadline_s, left_s) if limit is not None]
        return dataclasses.replace(
            question.options, priority=priority, tenant=self.tenant_of(key), deadline_s=min(deadlines, default=None)
        )

    async def begin(self, question: Question, record: RequestRecord, key: Key) -> Answer:
        """All that can end in an error status; returns with the first token. Raises: as `ask`."""
        self.check_ready()
        record.set_deadline()
        messages = await record.in_time(self.messages(question, key))
        if record.trace is not None:
            await record.trace.note_messages(messages)
        return await self.ask(messages, question.sampling, record, self.options_of(question, key, record.left_s()))

    async def ask(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        record: RequestRecord,
        options: QueueOptions = QueueOptions(),
    ) -> Answer:
        """Start an answer; returns with its first piece, so that whatever is wrong with the request is known by now.

        Raises: RequestError, CapacityError, EngineError.
        """
        keeps = self.results is not None and record.may_reuse
        begin = self._found_or_asked if keeps else self._measured
        answer = Answer(begin(messages, params, record, options), record.expires_s)
        try:
            await answer.begin()
        except BaseException:
            await answer.aclose()
            raise
        return answer

    async def _found_or_asked(
        self, messages: Sequence[Message], params: SamplingParams, record: RequestRecord, options: QueueOptions
    ) -> AsyncGenerator[Delta, None]:
        """The stored answer, if this one is."""
        assert self.results is not None
        self.check_ready()
        salt = repr((options.tenant, options.cache_salt, self.llm.info.fingerprint))
        digest = await asyncio.to_thread(request_digest, messages, params, salt)
        stored = self.results.get(digest) if digest is not None else None
        if stored is not None:
            record.headers[HEADER] = "hit"
            self.metrics.result_cache_hits.inc()
            for delta in stored:
                record.usage = delta.usage or record.usage
                yield delta
            return
        deltas = []
        async with aclosing(self._measured(messages, params, record, options)) as measured:
            async for delta in measured:
                if digest is not None:
                    deltas.append(delta)
                yield delta
        if digest is not None:
            self.results.put(digest, fold_deltas(deltas))

    def _shown(self, usage: Usage, record: RequestRecord) -> Usage:
        """Times only to who asks for them. Where tenants share caches, neither times nor hits: they would tell what
        another has sent.
        """
        if self.is_told_little:
            return dataclasses.replace(usage, timing=None, cached_tokens=0)
        return usage if record.wants_timing else dataclasses.replace(usage, timing=None)

    async def _measured(
        self, messages: Sequence[Message], params: SamplingParams, record: RequestRecord, options: QueueOptions
    ) -> AsyncGenerator[Delta, None]:
        self.check_ready()
        clock = TokenClock(self.metrics.tokens)
        stream = self.llm.stream(messages, params, options=options, request_id=record.answer_id)
        async with aclosing(cast("AsyncGenerator[Delta, None]", stream)) as deltas:
            async for delta in deltas:
                if delta.finish_reason is FinishReason.ABORT:
                    raise EngineError("the answer was aborted before it was complete")
                record.num_tokens += len(delta.token_ids)
                if record.trace is not None and delta.prompt_token_ids is not None:
                    record.trace.note_prompt(delta.prompt_token_ids)
                if delta.token_ids and record.first_token_s is None:
                    record.first_token_s = record.age_s()
                    self.metrics.first_token_s.observe(record.first_token_s)
                clock.observe(delta)
                if delta.usage is not None:
                    record.usage = delta.usage
                    self.metrics.count_answer(delta.usage, record.first_token_s)
                    self._observe(record, delta.usage)
                    delta = dataclasses.replace(delta, usage=self._shown(delta.usage, record))
                yield delta
        if record.usage is None:
            raise EngineError("the answer ended before it was complete")

    def _observe(self, record: RequestRecord, usage: Usage) -> None:
        if record.first_token_s is not None:
            computed = max(1, usage.prompt_tokens - usage.cached_tokens)
            decode_s = record.age_s() - record.first_token_s
            self.rates.observe(Pace(computed, record.first_token_s, usage.completion_tokens - 1, decode_s))
