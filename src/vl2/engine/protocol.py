"""What crosses between a client and the engine it talks to: plain data, as msgpack where it crosses processes."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import zmq

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


T = TypeVar("T")
Buffer = bytes | memoryview | zmq.Frame


class _Arrays(threading.local):
    """Of the message that is being decoded: msgspec's hooks are told nothing of it."""

    frames: Sequence[Buffer] = ()


_arrays = _Arrays()


def encode(message: msgspec.Struct) -> list[Buffer]:
    """The frames of one of these messages, or of engine/hub_protocol.py's: the pixels of pictures have their own, which
    are not copied. Tiles that are all the same one (`np.broadcast_to`) are sent once.
    """
    frames: list[Buffer] = [b""]

    def hook(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} cannot cross between processes")
        if not value.size:
            return (value.shape, 0)
        sent = value[:1] if value.strides[0] == 0 else value
        frames.append(np.ascontiguousarray(sent).reshape(-1).data)
        return (value.shape, len(frames) - 1)

    frames[0] = msgspec.msgpack.Encoder(enc_hook=hook).encode(message)
    return frames


def decode_hook(kind: type, value: Any) -> Any:
    assert kind is np.ndarray, kind
    shape, frame = value
    pixels = _view(_arrays.frames[frame]) if frame else b""
    rows = np.frombuffer(pixels, dtype=np.uint8)
    if rows.size == math.prod(shape):
        return rows.reshape(shape)
    return np.broadcast_to(rows.reshape(shape[1:]), shape)


def decode(decoder: msgspec.msgpack.Decoder[T], frames: Sequence[Buffer]) -> T:
    """Arrays of the result lie in the frames' memory. Raises: msgspec.DecodeError."""
    _arrays.frames = frames
    try:
        return decoder.decode(_view(frames[0]))
    finally:
        _arrays.frames = ()


def _view(frame: Buffer) -> memoryview:
    return memoryview(frame.buffer if isinstance(frame, zmq.Frame) else frame)


_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command, dec_hook=decode_hook)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def decode_command(frames: Sequence[Buffer]) -> Command:
    return decode(_command_decoder, frames)


def decode_report(frames: Sequence[Buffer]) -> Report:
    return decode(_report_decoder, frames)
