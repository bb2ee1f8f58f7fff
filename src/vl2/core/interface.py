"""What the server and the CLI may ask of the layers below: the seam that tests fill with a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from vl2.core.stats import ModelInfo, ReplicaStats
from vl2.core.types import Delta, ImageSource, Message, Prompt, QueueOptions, SamplingParams

if TYPE_CHECKING:
    from PIL import Image


class ChatModel(Protocol):
    """`vl2.llm.LLM` as its users see it."""

    name: str

    @property
    def is_ready(self) -> bool:
        """Whether an engine is up and takes requests; with several, one is enough."""

    @property
    def is_failed(self) -> bool:
        """Whether every engine died and could not be started again: nothing will be answered any more."""

    async def wait_failed(self) -> str:
        """Returns when `is_failed`, with the reason."""

    @property
    def info(self) -> ModelInfo:
        """Facts of the loaded model. Valid once it has started."""

    async def start(self) -> None:
        """Load the model; returns when it is ready. Raises: SetupError."""

    async def stop(self) -> None:
        """Stop the engine; open streams end with EngineError."""

    async def process(self, messages: Sequence[Message], tenant: str = "") -> Prompt:
        """What the model would see, with exact token counts; nothing is computed. `tenant`: whose earlier pictures may
        be used again. Raises: RequestError.
        """

    async def pdf_pages(self, data: bytes, pages: str | None = None) -> list[Image.Image]:
        """Pages of a PDF as pictures; `pages` as "1-3,5". Raises: InvalidImage, InvalidRequest, TooLarge."""

    async def open_picture(self, source: ImageSource) -> Image.Image:
        """A picture as the model sees it: upright, RGB of 8 bits. Raises: InvalidImage, TooLarge."""

    def stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        *,
        options: QueueOptions = QueueOptions(),
        request_id: str | None = None,
    ) -> AsyncIterator[Delta]:
        """Answer `messages` piece by piece; the order of deltas is told at `Delta`.

        Closing the iterator, or cancelling its task, aborts the request in the engine. Raises: RequestError before the
        first delta; CapacityError likewise; EngineError at any time.
        """

    async def replica_stats(self) -> list[ReplicaStats]:
        """The counters of each engine now, always in the same order."""


Service = Callable[[str, bytes], Awaitable[bytes]]
"""(front-end's name, payload) → answer. Raises: VL2Error, which its caller gets."""


class Caller(Protocol):
    """A way to the process that keeps what front-ends share."""

    async def call(self, service: str, payload: bytes = b"") -> bytes:
        """The service's answer. Raises: VL2Error, as the service does."""

    def tell(self, service: str, payload: bytes) -> None:
        """Without waiting for an answer."""
