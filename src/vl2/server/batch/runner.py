"""Works through batches in the background, and goes on with them after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
from typing import Any

from starlette.types import ASGIApp

from vl2.core.errors import NotFound, VL2Error
from vl2.server.batch import inside
from vl2.server.batch.batches import BatchStore, Line
from vl2.server.batch.files import FileStore
from vl2.server.batch.input import read_lines
from vl2.server.tenants import Key

logger = logging.getLogger(__name__)

PRIORITY = 50  # behind everything that somebody waits for
SWEEP_S = 60.0
BUSY = (429, 503)  # not an answer: the line waits and asks again
MAX_BUSY_WAIT_S = 5.0
MAX_TRIES = 3  # of a line that ended in a failure of ours


class BatchRunner:
    def __init__(
        self, app: ASGIApp, batches: BatchStore, files: FileStore, *, concurrency: int, max_lines: int
    ) -> None:
        self._app, self._batches, self._files = app, batches, files
        self._gate = asyncio.Semaphore(concurrency)
        self._max_lines = max_lines
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for batch_id in await self._batches.open_ids():
            self.begin(batch_id)
        self._sweeper = asyncio.ensure_future(self._sweep_for_ever())

    async def stop(self) -> None:
        """Lines under way are dropped; they are asked again after the next start."""
        tasks = [task for task in [*self._tasks.values(), self._sweeper] if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def begin(self, batch_id: str) -> None:
        task = asyncio.ensure_future(self._run(batch_id))
        self._tasks[batch_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch_id, None))

    async def cancel(self, batch_id: str) -> None:
        """What is under way is dropped; what is done is written out."""
        await self._batches.set_status(batch_id, "cancelling")
        task = self._tasks.get(batch_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.begin(batch_id)

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self._files.sweep()
            except Exception:
                logger.exception("expired files could not be removed")
            await asyncio.sleep(SWEEP_S)

    async def _run(self, batch_id: str) -> None:
        try:
            await self._work(batch_id)
        except Exception:  # a bug must not leave a batch that nobody works on and nobody knows about
            logger.exception("batch %s failed", batch_id)
            error = {"code": "server_error", "message": "internal error; the server's log has it", "line": None}
            await self._batches.set_status(batch_id, "failed", errors=json.dumps([error]))

    async def _work(self, batch_id: str) -> None:
        """From whatever state it is in to its end."""
        batch = await self._batches.row(batch_id)
        assert batch is not None
        if batch["status"] == "validating" and not await self._validate(batch):
            return
        if batch["status"] in ("validating", "in_progress"):
            left_s = max(0.0, batch["expires_at"] - self._batches.clock())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ask_all(batch), left_s)
        end = "cancelled" if batch["status"] == "cancelling" else "completed"
        if end == "completed":
            await self._batches.set_status(batch_id, "finalizing")
            if await self._batches.lines_to_do(batch_id):
                end = "expired"
        await self._finish(batch, end)

    async def _validate(self, batch: sqlite3.Row) -> bool:
        try:
            data = await self._files.read(batch["tenant"], batch["input_file_id"])
        except NotFound:
            data = b""
        lines, errors = await asyncio.to_thread(read_lines, data, batch["endpoint"], self._max_lines)
        if errors:
            await self._batches.set_status(batch["id"], "failed", errors=json.dumps(errors))
            return False
        await self._batches.add_lines(batch["id"], lines)
        return True

    async def _ask_all(self, batch: sqlite3.Row) -> None:
        lines = await self._batches.lines_to_do(batch["id"])
        tasks = [asyncio.ensure_future(self._ask(batch, line)) for line in lines]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, batch: sqlite3.Row, line: Line) -> None:
        key = Key(batch["tenant"], priority=batch["priority"])
        num_tries = 0
        async with self._gate:
            while True:
                status, body, headers = await inside.post(self._app, batch["endpoint"], line.body.encode(), key)
                num_tries += status not in BUSY
                if (status < 500 and status not in BUSY) or status == 504 or num_tries >= MAX_TRIES:
                    break
                await asyncio.sleep(min(MAX_BUSY_WAIT_S, float(headers.get("retry-after", 1))))
        await self._batches.set_answer(
            batch["id"], line.line_idx, status, body.decode(), headers.get("x-request-id", "")
        )

    async def _finish(self, batch: sqlite3.Row, end: str) -> None:
        rows = await self._batches.answered(batch["id"])
        fields: dict[str, Any] = {}
        for name, is_good in {"output": True, "error": False}.items():
            told = [text for row in rows if (text := _result(row, end, is_good)) is not None]
            if not told:
                continue
            try:
                file = await self._files.add(
                    batch["tenant"], f"{batch['id']}_{name}.jsonl", "batch_output", told, batch["output_expires_s"]
                )
                fields[f"{name}_file_id"] = file["id"]
            except VL2Error as error:
                fields["errors"] = json.dumps([{"code": error.code, "message": error.message, "line": None}])
                end = "failed"
        await self._batches.set_status(batch["id"], end, **fields)
        await self._batches.drop_lines(batch["id"])


def _result(row: sqlite3.Row, end: str, is_good: bool) -> bytes | None:
    """A line of the output file, or, for all that is no 200, of the error file."""
    if (row["status"] == 200) is not is_good or (row["status"] is None and end == "completed"):
        return None
    told: dict[str, Any] = {"id": f"{row['batch_id']}_{row['line_idx']}", "custom_id": row["custom_id"]}
    if row["status"] is None:
        message = "the batch's time was over" if end == "expired" else "the batch was cancelled"
        told |= {"response": None, "error": {"code": f"batch_{end}", "message": f"{message} before this line"}}
    else:
        response = {"status_code": row["status"], "request_id": row["request_id"], "body": json.loads(row["answer"])}
        told |= {"response": response, "error": None}
    return json.dumps(told, ensure_ascii=False).encode() + b"\n"
