"""What crosses between a client and the engine it talks to: plain data, as msgpack where it crosses processes."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from vl2.core.stats import EngineStats, ModelInfo
from vl2.core.types import GenerateRequest, TokenEvent

# ---- client → engine


class Add(msgspec.Struct, frozen=True, tag=True):
    request: GenerateRequest


class Abort(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    choice_idx: int | None = None  # None: all of them


class AskStats(msgspec.Struct, frozen=True, tag=True):
    query_id: int


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answered by the loop between two steps."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    pass


Command = Add | Abort | AskStats | Ping | Stop

# ---- engine → client


class LoadProgress(msgspec.Struct, frozen=True, tag=True):
    done_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    info: ModelInfo


class SetupFailed(msgspec.Struct, frozen=True, tag=True):
    message: str


class Events(msgspec.Struct, frozen=True, tag=True):
    events: list[TokenEvent]


class StatsReport(msgspec.Struct, frozen=True, tag=True):
    query_id: int
    stats: EngineStats


class Pong(msgspec.Struct, frozen=True, tag=True):
    pass


Report = LoadProgress | Ready | SetupFailed | Events | StatsReport | Pong


def _encode_hook(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.shape, value.tobytes())
    raise TypeError(f"{type(value).__name__} cannot cross between processes")


def decode_hook(kind: type, value: Any) -> Any:
    assert kind is np.ndarray, kind
    shape, pixels = value
    return np.frombuffer(pixels, dtype=np.uint8).reshape(shape)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_command_decoder = msgspec.msgpack.Decoder(Command, dec_hook=decode_hook)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(message: msgspec.Struct) -> bytes:
    """Of these, or of engine/hub_protocol.py."""
    return _encoder.encode(message)


def decode_command(data: bytes) -> Command:
    return _command_decoder.decode(data)


def decode_report(data: bytes) -> Report:
    return _report_decoder.decode(data)
