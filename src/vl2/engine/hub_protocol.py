"""What crosses between a front-end process and the hub: requests, their events, and calls to what the hub keeps."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vl2.core import errors
from vl2.core.errors import CapacityError, EngineError, VL2Error
from vl2.core.stats import ModelInfo
from vl2.core.types import Prompt, QueueOptions, SamplingParams
from vl2.engine.protocol import Buffer, Events, decode, decode_hook

NO_ANSWER = -1


class Failure(msgspec.Struct, frozen=True):
    """An error of `core.errors` on its way."""

    kind: str
    message: str
    param: str | None = None
    retry_after_s: float = 1.0

    @classmethod
    def of(cls, error: VL2Error) -> Failure:
        retry_after_s = error.retry_after_s if isinstance(error, CapacityError) else 1.0
        return cls(type(error).__name__, error.message, error.param, retry_after_s)

    def error(self) -> VL2Error:
        kind = getattr(errors, self.kind, EngineError)
        error: VL2Error = kind(self.message)
        error.param = self.param
        if isinstance(error, CapacityError):
            error.retry_after_s = self.retry_after_s
        return error


# ---- front-end → hub


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A front-end is there; it is told the engines' state from now on."""


class Welcoming(msgspec.Struct, frozen=True, tag=True):
    """It has been told that the engines are ready, and takes questions."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    prompt: Prompt
    params: SamplingParams
    options: QueueOptions


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Nobody waits for the rest."""

    request_id: str


class CloseChoice(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    choice_idx: int


class Call(msgspec.Struct, frozen=True, tag=True):
    """To a service of the hub; `call_id` NO_ANSWER: none is wanted."""

    call_id: int
    service: str
    payload: bytes


ToHub = Hello | Welcoming | Submit | Drop | CloseChoice | Call

# ---- hub → front-end


class State(msgspec.Struct, frozen=True, tag=True):
    is_ready: bool
    failure: str | None
    info: ModelInfo | None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The end of a request, before or after its first event."""

    request_id: str
    failure: Failure


class Answered(msgspec.Struct, frozen=True, tag=True):
    call_id: int
    payload: bytes = b""
    failure: Failure | None = None


ToFrontend = State | Events | Refused | Answered

_to_hub: msgspec.msgpack.Decoder[ToHub] = msgspec.msgpack.Decoder(ToHub, dec_hook=decode_hook)
_to_frontend: msgspec.msgpack.Decoder[ToFrontend] = msgspec.msgpack.Decoder(ToFrontend)


def decode_to_hub(frames: Sequence[Buffer]) -> ToHub:
    return decode(_to_hub, frames)


def decode_to_frontend(frames: Sequence[Buffer]) -> ToFrontend:
    return decode(_to_frontend, frames)
