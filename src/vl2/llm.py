"""LLM = processor + engine behind chat() and stream(): the offline API, and what the server calls.

from vl2 import LLM, Message

llm = LLM()  # vl2-nano; or LLM("tiny"), LLM("/models/deepseek-vl2-small")
print(llm.chat([Message("user", "<image>\\nWhat is in the picture?", ("picture.png",))]).text)
print(llm.chat("What can you see?").text)  # one question without a picture
print(llm.chat([{"role": "user", "content": "What is in the picture?", "images": ["picture.png"]}]).text)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import queue
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from vl2.checkpoint.folder import read_model_config
from vl2.checkpoint.source import resolve_model
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig, check_options
from vl2.core.errors import SetupError
from vl2.core.model_config import ModelConfig
from vl2.core.stats import EngineStats, ModelInfo, ReplicaStats
from vl2.core.types import (
    Completion,
    Conversation,
    Delta,
    FinishReason,
    GroundedObject,
    ImageSource,
    Message,
    Prompt,
    QueueOptions,
    SamplingParams,
    Timing,
    TokenEvent,
    TokenLogprobs,
    TokenText,
    Usage,
    as_messages,
    fold_deltas,
)
from vl2.engine.group import EngineGroup
from vl2.engine.remote import RemoteGroup
from vl2.engine.transport import ProcessTransport, ThreadTransport
from vl2.processing.constrain import check_prompt
from vl2.processing.detokenizer import Detokenizer
from vl2.processing.grounding import parse_grounding
from vl2.processing.images import open_image
from vl2.processing.isolated import check_grammar, render_pdf
from vl2.processing.processor import Processor
from vl2.processing.tokenizer import DET, DET_END, REF, REF_END, Tokenizer

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
MAX_PROCESSOR_THREADS = 8


class LLM:
    """A model that answers questions about pictures. Implements `core.interface.ChatModel`.

    Async use: `await start()`, then `stream()`, all on one event loop. Sync use: `chat()` and `stream_sync()` load the
    model at the first call and run an event loop of their own in a thread; call `close()` (or use `with`) at the end.
    """

    def __init__(
        self,
        model: str = "nano",
        *,
        engine: EngineConfig = EngineConfig(),
        processor: ProcessorConfig = ProcessorConfig(),
        hub: HubOptions = HubOptions(),
        in_process: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
        remote: RemoteGroup | None = None,
    ) -> None:
        """Finds (or downloads) the checkpoint and reads its configuration; weights are loaded by `start()`.

        model: nano, tiny, small, base, a folder, or a Hub id. `in_process=False` runs the engine in its own process.
        `on_progress(bytes done, bytes in all)` is called while weights load. `remote`: the engines of another process,
        instead of own ones.

        Raises: SetupError.
        """
        check_options(engine, processor, hub)
        self.folder = resolve_model(model, options=hub)
        self.name = model.rstrip("/").rsplit("/", 1)[-1]
        model_config = read_model_config(self.folder)
        _check_context(engine, model_config)
        self.processor = Processor(self.folder, model_config, processor)
        transport = ThreadTransport if in_process else ProcessTransport
        self.client: EngineGroup | RemoteGroup = remote or EngineGroup(
            lambda config: transport(self.folder, config), engine, on_progress=on_progress
        )
        self._pool = ThreadPoolExecutor(MAX_PROCESSOR_THREADS, thread_name_prefix="vl2-processor")
        self._loop_thread: _LoopThread | None = None
        self._is_started = False

    # ---- async: on the caller's event loop ----

    @property
    def is_ready(self) -> bool:
        return self.client.is_ready

    @property
    def is_failed(self) -> bool:
        """Whether the engine died and could not be started again; it stays so until `start()` is called anew."""
        return self.client.failure is not None

    async def wait_failed(self) -> str:
        """Returns when `is_failed`, with the reason."""
        return await self.client.wait_failed()

    @property
    def info(self) -> ModelInfo:
        assert self.client.info is not None, "the model has not been started"
        return self.client.info

    async def start(self) -> None:
        """Load the model. Raises: SetupError."""
        await self.client.start()
        self._is_started = True

    async def stop(self) -> None:
        """Open streams end with EngineError."""
        self._is_started = False
        await self.client.stop()
        self._pool.shutdown(wait=False)

    async def stats(self) -> EngineStats:
        """Sums over the replicas."""
        return await self.client.stats()

    async def replica_stats(self) -> list[ReplicaStats]:
        return await self.client.replica_stats()

    async def process(self, messages: Conversation, tenant: str = "") -> Prompt:
        """What the model would see, with exact token counts. Raises: RequestError."""
        turns = as_messages(messages)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.processor.process, turns, tenant)

    async def pdf_pages(self, data: bytes, pages: str | None = None) -> list[Image.Image]:
        """Pages of a PDF as pictures, for `Message`s; `pages` as "1-3,5". Raises: InvalidImage, InvalidRequest."""
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, render_pdf, data, pages, self.processor.limits
        )

    async def open_picture(self, source: ImageSource) -> Image.Image:
        """A picture as the model sees it: upright, RGB of 8 bits. Raises: InvalidImage, TooLarge."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, open_image, source, self.processor.limits)

    async def stream(
        self,
        messages: Conversation,
        params: SamplingParams | None = None,
        *,
        options: QueueOptions = QueueOptions(),
        request_id: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Answer piece by piece; see `Delta` for the order. Closing the iterator aborts the request.

        Raises: RequestError or CapacityError before the first delta, EngineError at any time.
        """
        params = params or SamplingParams()
        messages = as_messages(messages)
        prompt = await self._process_for(params, messages, options.tenant)
        if options.tenant:
            prompt, options = _of_tenant(prompt, options)
        request: Any = self.client.admit(request_id or uuid.uuid4().hex, prompt, params, options)
        begun = messages[-1].content.strip() if messages[-1].role == "assistant" else ""
        answer = _Answer(prompt, params, self.processor.tokenizer, begun)
        async with contextlib.aclosing(self.client.generate(request)) as events:
            async for event in events:
                delta = answer.take(event)
                if delta.finish_reason is not None and event.finish_reason is None:
                    self.client.close_choice(request.request_id, event.choice_idx)
                yield delta

    async def _process_for(self, params: SamplingParams, messages: Sequence[Message], tenant: str) -> Prompt:
        """`process`, with a grammar checked before the pictures and against the prompt. Raises: RequestError."""
        grammar = params.grammar
        if grammar is not None:
            await asyncio.get_running_loop().run_in_executor(self._pool, check_grammar, grammar, self.processor.limits)
        prompt = await self.process(messages, tenant)
        if grammar is not None:
            check_prompt(grammar, prompt, self.processor.tokenizer)
        return prompt

    # ---- sync: on an event loop of our own ----

    def chat(self, messages: Conversation, params: SamplingParams | None = None) -> Completion:
        """The whole answer; `core.types.as_messages` says what `messages` may be.

        Raises: RequestError, CapacityError, EngineError, SetupError.
        """
        return fold_deltas(list(self.stream_sync(messages, params)))

    def stream_sync(self, messages: Conversation, params: SamplingParams | None = None) -> Generator[Delta, None, None]:
        """`stream()` for code without an event loop."""
        if self._loop_thread is None:
            self._loop_thread = _LoopThread()
        if not self._is_started:
            self._loop_thread.run(self.start())
        return self._loop_thread.iterate(self.stream(messages, params))

    def close(self) -> None:
        """End the engine. Idempotent."""
        if self._loop_thread is not None:
            self._loop_thread.run(self.stop())
            self._loop_thread.close()
            self._loop_thread = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_context(engine: EngineConfig, model: ModelConfig) -> None:
    wanted, trained = engine.max_context_tokens, model.language.max_position_embeddings
    if wanted is not None and wanted > trained:
        raise SetupError(
            f"--max-context-tokens is {wanted}, but this model was trained for {trained}; lower it, or leave it out",
            param="max_context_tokens",
        )


def _of_tenant(prompt: Prompt, options: QueueOptions) -> tuple[Prompt, QueueOptions]:
    """Keys of tiles and prefixes that no other tenant's request can have."""
    secret = options.tenant.encode()
    keys = tuple(hashlib.blake2b(key, key=secret[:64], digest_size=32).digest() for key in prompt.tile_keys)
    salt = f"{len(secret)}:{options.tenant}:{options.cache_salt}"
    return dataclasses.replace(prompt, tile_keys=keys), dataclasses.replace(options, cache_salt=salt)


class _Answer:
    """Turns the token events of one request into deltas."""

    def __init__(self, prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer, begun: str) -> None:
        """`begun`: the beginning of the answer that the prompt gives; it is no part of the text, but of the objects."""
        self._prompt, self._params, self._tokenizer = prompt, params, tokenizer
        self._detokenizers = [Detokenizer(tokenizer, params.stop) for _ in range(params.n)]
        self._texts = [begun] * params.n
        self._num_generated = 0
        self._num_cached = 0
        self._num_open = params.n
        self._is_first = True

    def take(self, event: TokenEvent) -> Delta:
        assert event.token_id is not None
        idx = event.choice_idx
        detokenizer = self._detokenizers[idx]
        text = detokenizer.push(event.token_id)
        finish_reason = FinishReason.STOP if detokenizer.stopped else event.finish_reason
        if finish_reason is not None:
            text += detokenizer.finish()
            self._num_open -= 1
        self._texts[idx] += text
        self._num_generated += 1
        self._num_cached = max(self._num_cached, event.num_cached_tokens)
        prompt_token_ids = tuple(self._prompt.token_ids) if self._is_first else None
        self._is_first = False
        return Delta(
            choice_idx=idx,
            text=text,
            token_ids=(event.token_id,),
            logprobs=() if event.logprobs is None else (self._token_text(event.token_id, event.logprobs),),
            finish_reason=finish_reason,
            grounding=self._grounding(idx) if finish_reason is not None else None,
            prompt_token_ids=prompt_token_ids,
            usage=self._usage(event.timing) if self._num_open == 0 else None,
            stop_string=detokenizer.stop_string if finish_reason is not None else None,
        )

    def _grounding(self, idx: int) -> tuple[GroundedObject, ...] | None:
        """Boxes are on the last picture of the conversation, as in the official demo.

        None: no objects, or malformed ones. Under the grammar of grounding, () says that there are none.
        """
        if not self._prompt.spans:
            return None
        picture, text = self._prompt.spans[-1], self._texts[idx]
        is_asked_for = self._params.grammar is not None and self._params.grammar.kind == "grounding"
        if is_asked_for and not any(tag in text for tag in (REF, REF_END, DET, DET_END)):
            return ()
        return parse_grounding(text, picture.width, picture.height)

    def _token_text(self, token_id: int, logprobs: TokenLogprobs) -> TokenText:
        def entry(token_id: int, logprob: float, top: tuple[TokenText, ...] = ()) -> TokenText:
            token_bytes = self._tokenizer.token_bytes(token_id)
            text = token_bytes.decode("utf-8", errors="replace")
            is_silent = token_id == self._tokenizer.eos_id  # ends the text, is no part of it
            return TokenText(token_id, text, b"" if is_silent else token_bytes, logprob, top)

        return entry(token_id, logprobs.logprob, tuple(entry(*pair) for pair in logprobs.top))

    def _usage(self, timing: Timing | None) -> Usage:
        return Usage(
            prompt_tokens=len(self._prompt.token_ids),
            completion_tokens=self._num_generated,
            image_tokens=self._prompt.num_image_tokens,
            cached_tokens=self._num_cached,
            timing=timing,
        )


class _LoopThread:
    """An event loop in a daemon thread, for callers that have none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="vl2-loop")
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Items as they come; leaving the iteration early closes the async iterator."""
        results: queue.SimpleQueue[T | BaseException | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with contextlib.aclosing(items) as closing:
                    async for item in closing:
                        results.put(item)
                results.put(None)
            except BaseException as error:
                results.put(error)

        future = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while (result := results.get()) is not None:
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            future.cancel()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
