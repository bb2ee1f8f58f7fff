"""A ZeroMQ socket on an event loop. What has come is handed over as soon as the loop sees it, without a task that waits
for it and a future for each message: half of what `zmq.asyncio` takes, on every token's way and on every request's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from vl2.engine.protocol import Buffer

log = logging.getLogger(__name__)

MOST_AT_ONCE = 64
"""Messages that are handed over before the loop's other work has its turn."""

OnFrames = Callable[[list[zmq.Frame]], None]


class Channel:
    """Never blocks, and has no bound: what cannot be sent yet, as nobody has connected, is sent when it can be."""

    def __init__(self, kind: int, *, name: str | None = None) -> None:
        """`kind`: zmq.PAIR, …; `name`: of a DEALER, by which its ROUTER knows it."""
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self._socket.set_hwm(0)
        if name is not None:
            self._socket.setsockopt(zmq.IDENTITY, name.encode())
        self._unsent: deque[tuple[Sequence[Buffer], bool]] = deque()
        self._on_frames: OnFrames | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_woken = False  # `_attend` will be called

    def bind(self, address: str) -> None:
        self._socket.bind(address)

    def connect(self, address: str) -> None:
        self._socket.connect(address)

    def listen(self, on_frames: OnFrames) -> None:
        """From now on, on the running loop. An exception of `on_frames` costs that message, and is logged."""
        self._on_frames = on_frames
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._attend)
        self._wake()

    def send(self, frames: Sequence[Buffer], *, copy: bool = True) -> None:
        """`copy=False`: frames must not change until they have been sent. Nothing happens once it is closed.

        What cannot be a message is logged and dropped: those before and behind it go out.
        """
        if not self._is_open():
            return
        self._unsent.append((frames, copy))
        self._send_all()
        self._look_again()

    def close(self) -> None:
        """What is not out by now is dropped. Idempotent."""
        if not self._is_open():
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close(linger=0)

    def _send_all(self) -> None:
        while self._unsent:
            frames, copy = self._unsent.popleft()
            try:
                self._socket.send_multipart(frames, zmq.DONTWAIT, copy=copy)
            except zmq.Again:
                self._unsent.appendleft((frames, copy))
                return
            except Exception:
                log.exception("a message could not be sent")

    def _attend(self) -> None:
        """The descriptor tells of changes only: all that there is to do must be done, or be done soon."""
        self._is_woken = False
        for _ in range(MOST_AT_ONCE):
            if not self._is_open():
                return
            self._send_all()
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                self._look_again()
                return
            self._hand_over(frames)
        self._wake()

    def _hand_over(self, frames: list[zmq.Frame]) -> None:
        assert self._on_frames is not None
        try:
            self._on_frames(frames)
        except Exception:
            log.exception("a message could not be taken")

    def _look_again(self) -> None:
        """Sending and receiving may have taken note of more than they did; the descriptor would not tell again."""
        wanted = zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0)
        if int(self._socket.getsockopt(zmq.EVENTS)) & wanted:
            self._wake()

    def _is_open(self) -> bool:
        return not self._socket.closed

    def _wake(self) -> None:
        if not self._is_woken and self._loop is not None:
            self._is_woken = True
            self._loop.call_soon(self._attend)
