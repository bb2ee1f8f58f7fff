"""Uploaded files and those that batches write: a row each, and the bytes beside the database."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vl2.core.errors import TooLarge
from vl2.server.batch.database import Database
from vl2.server.ids import NodeIds, not_found

KIND = "file"
Json = dict[str, Any]


class FileStore:
    def __init__(
        self, database: Database, ids: NodeIds, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        """`max_bytes`: of all files of a tenant together."""
        self.database, self.ids, self.clock = database, ids, clock
        self._max_bytes = max_bytes
        self.folder = database.folder / "files"
        self.folder.mkdir(mode=0o700, exist_ok=True)

    async def add(
        self, tenant: str, filename: str, purpose: str, chunks: Iterable[bytes], expires_s: int | None = None
    ) -> Json:
        """Written whole before its row, so that a row never lacks its bytes. Raises: TooLarge."""
        file_id = self.ids.new(KIND)
        num_bytes = await asyncio.to_thread(write_whole, self.folder / file_id, chunks)
        now = int(self.clock())
        row = (file_id, tenant, filename, num_bytes, purpose, now, None if expires_s is None else now + expires_s)

        def insert(connection: sqlite3.Connection) -> bool:
            (used,) = connection.execute("SELECT total(bytes) FROM files WHERE tenant = ?", (tenant,)).fetchone()
            if used + num_bytes > self._max_bytes:
                return False
            connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            return True

        if not await self.database.run(insert):
            (self.folder / file_id).unlink()
            raise TooLarge(f"the files kept here would take more than {self._max_bytes} bytes; delete some")
        return await self.get(tenant, file_id)

    async def get(self, tenant: str, file_id: str, param: str | None = None) -> Json:
        """Raises: NotFound."""
        self.ids.check(KIND, file_id, param)
        query = "SELECT * FROM files WHERE id = ? AND tenant = ? AND (expires_at IS NULL OR expires_at > ?)"
        found = await self.database.run(lambda db: db.execute(query, (file_id, tenant, self.clock())).fetchone())
        if found is None:
            raise not_found(file_id, param)
        return file_json(found)

    async def all_of(self, tenant: str, purpose: str | None) -> list[Json]:
        """Newest first."""
        query = (
            "SELECT * FROM files WHERE tenant = ? AND purpose = coalesce(?, purpose) "
            "AND (expires_at IS NULL OR expires_at > ?) ORDER BY created_at DESC, rowid DESC"
        )
        rows = await self.database.run(lambda db: db.execute(query, (tenant, purpose, self.clock())).fetchall())
        return [file_json(row) for row in rows]

    async def read(self, tenant: str, file_id: str) -> bytes:
        """Raises: NotFound."""
        await self.get(tenant, file_id)
        try:
            return await asyncio.to_thread((self.folder / file_id).read_bytes)
        except FileNotFoundError:  # deleted in between
            raise not_found(file_id) from None

    async def delete(self, tenant: str, file_id: str) -> None:
        """Raises: NotFound."""
        await self.get(tenant, file_id)
        await self.database.run(lambda db: db.execute("DELETE FROM files WHERE id = ?", (file_id,)))
        (self.folder / file_id).unlink(missing_ok=True)

    async def sweep(self) -> None:
        """Remove what has expired, and what a killed process left without a row."""
        known = await self.database.run(self._expire)
        for file in self.folder.iterdir():
            if file.name not in known and file.stat().st_mtime < time.time() - ORPHAN_AGE_S:
                file.unlink(missing_ok=True)

    def _expire(self, connection: sqlite3.Connection) -> set[str]:
        now = self.clock()
        for (file_id,) in connection.execute("SELECT id FROM files WHERE expires_at <= ?", (now,)).fetchall():
            (self.folder / file_id).unlink(missing_ok=True)
        connection.execute("DELETE FROM files WHERE expires_at <= ?", (now,))
        return {row[0] for row in connection.execute("SELECT id FROM files")}


ORPHAN_AGE_S = 3600  # a younger file may be one whose row is on its way


def write_whole(file: Path, chunks: Iterable[bytes]) -> int:
    """All of it on disk under its name, or nothing; returns the number of bytes."""
    partial = file.with_name(file.name + ".part")
    num_bytes = 0
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        for chunk in chunks:
            num_bytes += stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    partial.rename(file)
    return num_bytes


def file_json(row: sqlite3.Row) -> Json:
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
    }
