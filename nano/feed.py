"""From drawing processes to the GPU: workers draw into shared, pinned memory, a thread copies, `next` hands out.

Tiles are most of a micro-batch (70 MB), so they are written once, into a slot of memory that all processes share and
the GPU reads directly; what else a batch has goes through a pipe. A picture is handed out again with the next set of
questions whenever the workers are slower than the GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing as mp
import os
import pickle
import queue
import signal
import threading
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from multiprocessing.sharedctypes import Synchronized
from random import Random

import numpy as np
import torch
from pack import MAX_ROWS, TILE_BUDGET, Batch, make_batch, pick_layout, rows_for
from PIL import Image
from questions import PLAIN, Manner, conversation
from scenes import MIXES
from sheets import sheet_batch
from views import TILE

SHEET_SETS = 10  # a sheet is moved and faded anew each time it is used
ROOM = max(TILE_BUDGET, MAX_ROWS)  # tiles a slot


@dataclass(frozen=True)
class Menu:
    """What is drawn when. Shares are of the whole training time, or of the micro-batches."""

    sets: int  # question sets a picture
    many: float  # several tiles
    tower: float  # so long the tower learns alone
    sheets: float  # micro-batches without questions that are drawn after that
    mix: str = "plain"  # of `scenes.MIXES`
    manner: Manner = PLAIN  # of asking

    def later(self, progress: float) -> float:
        """Progress of the time after the tower's own."""
        return max(0.0, progress - self.tower) / (1 - self.tower)


def training_batch(number: int, menu: Menu, progress: float, room: np.ndarray | None = None) -> Batch:
    """The micro-batch of this number. 1,024 seeds a batch are enough for every layout, so no two batches share a scene."""
    rng, seed, mix = Random(number), 1_000_000 + number * 1024, MIXES[menu.mix]
    if progress < menu.tower or rng.random() < menu.sheets:
        return sheet_batch(seed, SHEET_SETS, room, mix=mix)
    layout = pick_layout(rng, menu.later(progress), menu.many)
    labelled = len(layout) > 1 and rng.random() < 0.4
    ask = partial(conversation, manner=menu.manner)
    return make_batch(layout, seed, rows_for(layout), menu.sets, labelled, ask, mix=mix, room=room)


def keep_memory() -> None:
    """Do not give freed picture memory back to the system: getting it again costs a page fault for every 4 KB."""
    Image.core.set_blocks_max(64)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
        for option, value in ((m_mmap_threshold, 1 << 30), (m_trim_threshold, 2**31 - 1), (m_top_pad, 1 << 26)):
            libc.mallopt(option, value)


class Workers:
    """Processes that draw micro-batches without end, for one training or several side by side that look at the same ones.

    To be started before CUDA is touched: they are forks. A slot is drawn anew once every training has copied it.
    """

    def __init__(self, count: int, start: int, menu: Menu, progress: Synchronized, trainings: int = 1) -> None:
        self.slots = 2 * count + 4
        self.memory = mmap(-1, self.slots * ROOM * TILE * TILE * 3)
        self.rooms = np.frombuffer(self.memory, np.uint8).reshape(self.slots, ROOM, TILE, TILE, 3)
        self.free: mp.SimpleQueue[int] = mp.SimpleQueue()
        self.made = [mp.Pipe(duplex=False) for _ in range(trainings)]
        self.writing = [mp.Lock() for _ in range(trainings)]
        self.owed = mp.Array("q", self.slots)  # a bit for each training that has not copied the slot yet
        self.there = mp.Value("q", (1 << trainings) - 1)  # a bit for each training that still wants some
        self.gone = mp.Value("b", 0)
        self.processes = [
            mp.Process(target=self._work, args=(start + k, count, menu, progress), daemon=True) for k in range(count)
        ]
        for p in self.processes:
            p.start()

    def _work(self, number: int, step: int, menu: Menu, progress: Synchronized) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
        os.nice(10)  # what feeds the GPU goes first
        keep_memory()
        while True:
            slot = self.free.get()
            batch = training_batch(number, menu, progress.value, self.rooms[slot])
            batch.tiles = batch.tiles.new_empty(batch.tiles.shape[0], 0)  # they are in the slot
            # As plain arrays: tensors would each travel through a shared file.
            self._hand_out(slot, pickle.dumps((slot, batch.map(lambda t: t.numpy())), pickle.HIGHEST_PROTOCOL))
            number += step

    def _hand_out(self, slot: int, message: bytes) -> None:
        with self.owed.get_lock():
            wanted = self.owed[slot] = self.there.value
        for k, (_, pipe) in enumerate(self.made):
            if wanted >> k & 1:
                with self.writing[k]:
                    pipe.send_bytes(message)

    def go(self) -> None:
        """Let them draw, if nobody did before. Until now they waited, and the other cores were free to compile."""
        with self.gone.get_lock():
            first, self.gone.value = not self.gone.value, 1
        for slot in range(self.slots if first else 0):
            self.free.put(slot)

    def next(self, training: int = 0) -> tuple[int, Batch]:
        slot, batch = pickle.loads(self.made[training][0].recv_bytes())
        return slot, batch.map(torch.from_numpy)

    def done(self, slot: int, training: int = 0) -> None:
        """This training has copied what is in the slot."""
        with self.owed.get_lock():
            before = self.owed[slot]
            self.owed[slot] = left = before & ~(1 << training)
        if before and not left:
            self.free.put(slot)

    def leave(self, training: int, patience_s: float = 5) -> None:
        """That training is over, or dead: the others do not wait for it. To be called by who does not read for it."""
        with self.owed.get_lock():
            self.there.value &= ~(1 << training)
        while self.made[training][0].poll(patience_s):  # a worker may be writing
            self.made[training][0].recv_bytes()
        for slot in range(self.slots):
            self.done(slot, training)

    def leads(self, training: int) -> bool:
        """Whether this is the first of the trainings that are there: its clock decides what is drawn."""
        return self.there.value & ((1 << training) - 1) == 0

    def stop(self) -> None:
        for p in self.processes:
            p.kill()


class Feeder:
    """Micro-batches on the device: sheets again, as long as fewer than `sheets` of all were any; else fresh ones; else the
    oldest picture with questions left.

    A sheet costs more than twice as much drawing as a micro-batch of scenes, and is moved and faded anew each time it is used, so
    fewer are drawn than are wanted.
    """

    def __init__(
        self,
        workers: Workers,
        device: str,
        sheets: float,
        *,
        keep: int = 150,
        patience: int = 40,
        training: int = 0,
    ) -> None:
        self.workers, self.device, self.training = workers, device, training
        self.ready: queue.Queue[Batch] = queue.Queue(3)
        self.sheets, self.keep, self.patience = sheets, keep, patience
        self.fresh = self.fresh_scenes = self.again = 0
        self.forget()
        if device == "cuda":  # pinned, so that copies run beside the training step
            rooms = workers.rooms
            refused = torch.cuda.cudart().cudaHostRegister(rooms.ctypes.data, rooms.nbytes, 0)
            if int(refused):
                print(f"pictures are not pinned ({refused}): copying them takes longer", flush=True)
        threading.Thread(target=self._pull, daemon=True).start()

    def _pull(self) -> None:
        stream = torch.cuda.Stream() if self.device == "cuda" else None
        while True:
            slot, batch = self.workers.next(self.training)
            batch.tiles = torch.from_numpy(self.workers.rooms[slot, : len(batch.tiles)])
            if stream is None:
                moved = batch.map(torch.clone)
            else:
                with torch.cuda.stream(stream):
                    moved = batch.to("cuda")
                    stream.synchronize()
            self.workers.done(slot, self.training)
            self.ready.put(moved)

    def forget(self) -> None:
        """Use nothing again that was used until now."""
        self.used: dict[bool, list[tuple[Batch, int]]] = {True: [], False: []}  # sheets, scenes
        self.shown = {True: 0, False: 0}

    def next(self) -> tuple[Batch, int]:
        shelf = self._shelf()
        if shelf is not None:
            batch, r = shelf.pop(0)
            self.again += 1
        else:
            batch, r = self.ready.get(), 0
            self.fresh += 1
            self.fresh_scenes += not batch.is_sheet
            if batch.tiles.is_cuda:  # the allocator must not reuse this memory while the training stream reads it
                batch.map(lambda t: t.record_stream(torch.cuda.current_stream()))
        self.shown[batch.is_sheet] += 1
        if r + 1 < len(batch.targets):
            shelf = self.used[batch.is_sheet]
            shelf.append((batch, r + 1))
            del shelf[: -self.keep]
        return batch, r

    def _shelf(self) -> list[tuple[Batch, int]] | None:
        """Where the next one is taken from; None: a fresh one."""
        sheets, scenes = self.used[True], self.used[False]
        are_few = self.shown[True] < self.sheets * sum(self.shown.values())
        if sheets and self.shown[False] and are_few:
            return sheets
        if self.ready.empty():
            return next((shelf for shelf in (scenes, sheets) if len(shelf) > self.patience), None)
        return None
