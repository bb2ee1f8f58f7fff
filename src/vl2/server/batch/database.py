"""The database under --state-dir: one server's, with a versioned schema, used from one thread."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from vl2.core.errors import SetupError

T = TypeVar("T")

MIGRATIONS = (
    """
    CREATE TABLE files (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, filename TEXT NOT NULL, bytes INTEGER NOT NULL,
        purpose TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER
    );
    CREATE INDEX files_of_tenant ON files (tenant, created_at);
    CREATE TABLE batches (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, priority INTEGER NOT NULL, endpoint TEXT NOT NULL,
        input_file_id TEXT NOT NULL, status TEXT NOT NULL, metadata TEXT NOT NULL, output_expires_s INTEGER,
        created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, in_progress_at INTEGER, finalizing_at INTEGER,
        completed_at INTEGER, failed_at INTEGER, expired_at INTEGER, cancelling_at INTEGER, cancelled_at INTEGER,
        output_file_id TEXT, error_file_id TEXT, errors TEXT
    );
    CREATE INDEX batches_of_tenant ON batches (tenant, created_at);
    CREATE TABLE lines (
        batch_id TEXT NOT NULL, line_idx INTEGER NOT NULL, custom_id TEXT NOT NULL, body TEXT NOT NULL,
        request_id TEXT, status INTEGER, answer TEXT,
        PRIMARY KEY (batch_id, line_idx)
    ) WITHOUT ROWID;
    """,
)
"""Each brings the schema from the version that is its index to the next; what was released is never changed."""


class Database:
    """`await database.run(work)`: `work(connection)` is one transaction, which is on disk when this returns.

    Write-ahead logging: a killed process loses nothing that was committed.
    """

    def __init__(self, folder: Path) -> None:
        """Raises: SetupError when another server has the folder, or a newer version wrote it."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(f"--state-dir {folder} is in use by another server; each needs its own") from None
        except OSError as error:
            raise SetupError(f"--state-dir {folder} cannot be used: {error.strerror}") from None
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vl2-state")
        self._connection = self._thread.submit(_open, folder / "state.db").result()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transaction, work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._connection:
            return work(self._connection)

    def close(self) -> None:
        self._thread.submit(self._connection.close).result()
        self._thread.shutdown()
        os.close(self._lock)


def _open(file: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(file)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise SetupError(
                f"{file} has schema version {version}, and this vl2 knows up to {len(MIGRATIONS)}; use a newer vl2"
            )
        for idx, script in enumerate(MIGRATIONS[version:], version):
            connection.executescript(f"BEGIN; {script} PRAGMA user_version = {idx + 1}; COMMIT;")
    except sqlite3.Error as error:
        raise SetupError(f"{file} cannot be used: {error}") from None
    os.chmod(file, 0o600)
    return connection
