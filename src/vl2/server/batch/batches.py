"""Batches and their lines, as rows."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vl2.server.batch.database import Database
from vl2.server.ids import NodeIds, not_found

KIND = "batch"
WINDOW_S = 24 * 3600
OPEN = ("validating", "in_progress", "finalizing", "cancelling")
TIMES = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at",
)  # fmt: skip
Json = dict[str, Any]


@dataclass(frozen=True)
class Line:
    line_idx: int
    custom_id: str
    body: str  # JSON


class BatchStore:
    def __init__(self, database: Database, ids: NodeIds, clock: Callable[[], float] = time.time) -> None:
        self.database, self.ids, self.clock = database, ids, clock

    async def add(
        self, tenant: str, priority: int, endpoint: str, file_id: str, metadata: Json, output_expires_s: int | None
    ) -> str:
        batch_id, now = self.ids.new(KIND), int(self.clock())
        columns = "id, tenant, priority, endpoint, input_file_id, status, metadata, output_expires_s, created_at"
        values = (batch_id, tenant, priority, endpoint, file_id, "validating", json.dumps(metadata), output_expires_s)
        query = f"INSERT INTO batches ({columns}, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        await self.database.run(lambda db: db.execute(query, (*values, now, now + WINDOW_S)))
        return batch_id

    async def get(self, tenant: str, batch_id: str) -> Json:
        """Raises: NotFound."""
        self.ids.check(KIND, batch_id)
        row = await self.row(batch_id)
        if row is None or row["tenant"] != tenant:
            raise not_found(batch_id)
        return (await self._with_counts([row]))[0]

    async def all_of(self, tenant: str) -> list[Json]:
        """Newest first."""
        query = "SELECT * FROM batches WHERE tenant = ? ORDER BY created_at DESC, rowid DESC"
        return await self._with_counts(await self.database.run(lambda db: db.execute(query, (tenant,)).fetchall()))

    async def row(self, batch_id: str) -> sqlite3.Row | None:
        query = "SELECT * FROM batches WHERE id = ?"
        return await self.database.run(lambda db: db.execute(query, (batch_id,)).fetchone())

    async def open_ids(self) -> list[str]:
        """Those that are not at their end; after a restart, those to go on with."""
        query = f"SELECT id FROM batches WHERE status IN ({', '.join('?' * len(OPEN))}) ORDER BY created_at"
        rows = await self.database.run(lambda db: db.execute(query, OPEN).fetchall())
        return [row["id"] for row in rows]

    async def set_status(self, batch_id: str, status: str, **fields: Any) -> None:
        """With its time. An end is final."""
        fields = {"status": status, f"{status}_at": int(self.clock()), **fields}
        names = ", ".join(f"{name} = ?" for name in fields)
        query = f"UPDATE batches SET {names} WHERE id = ? AND status IN ({', '.join('?' * len(OPEN))})"
        await self.database.run(lambda db: db.execute(query, (*fields.values(), batch_id, *OPEN)))

    async def add_lines(self, batch_id: str, lines: Sequence[Line]) -> None:
        """Together with the state that says that they are there."""
        now = int(self.clock())

        def insert(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR IGNORE INTO lines (batch_id, line_idx, custom_id, body) VALUES (?, ?, ?, ?)",
                [(batch_id, line.line_idx, line.custom_id, line.body) for line in lines],
            )
            connection.execute(
                "UPDATE batches SET status = 'in_progress', in_progress_at = ? WHERE id = ? AND status = 'validating'",
                (now, batch_id),
            )

        await self.database.run(insert)

    async def lines_to_do(self, batch_id: str) -> list[Line]:
        query = "SELECT line_idx, custom_id, body FROM lines WHERE batch_id = ? AND status IS NULL ORDER BY line_idx"
        rows = await self.database.run(lambda db: db.execute(query, (batch_id,)).fetchall())
        return [Line(*row) for row in rows]

    async def set_answer(self, batch_id: str, line_idx: int, status: int, answer: str, request_id: str) -> None:
        """The first answer of a line is its only one."""
        query = (
            "UPDATE lines SET status = ?, answer = ?, request_id = ?, body = '' "
            "WHERE batch_id = ? AND line_idx = ? AND status IS NULL"
        )
        values = (status, answer, request_id, batch_id, line_idx)
        await self.database.run(lambda db: db.execute(query, values))

    async def answered(self, batch_id: str) -> list[sqlite3.Row]:
        """All lines, with their answers where they have one."""
        query = "SELECT * FROM lines WHERE batch_id = ? ORDER BY line_idx"
        return await self.database.run(lambda db: db.execute(query, (batch_id,)).fetchall())

    async def drop_lines(self, batch_id: str) -> None:
        """At its end: the counts stay in the output files, and in the row."""
        await self.database.run(lambda db: db.execute("UPDATE lines SET answer = NULL WHERE batch_id = ?", (batch_id,)))

    async def _with_counts(self, rows: Sequence[sqlite3.Row]) -> list[Json]:
        query = "SELECT count(*), total(status = 200), total(status != 200) FROM lines WHERE batch_id = ?"

        def count(connection: sqlite3.Connection) -> list[Json]:
            return [batch_json(row, *map(int, connection.execute(query, (row["id"],)).fetchone())) for row in rows]

        return await self.database.run(count)


def batch_json(row: sqlite3.Row, total: int, completed: int, failed: int) -> Json:
    errors = json.loads(row["errors"]) if row["errors"] else None
    return {
        "id": row["id"],
        "object": "batch",
        "endpoint": row["endpoint"],
        "errors": errors and {"object": "list", "data": errors},
        "input_file_id": row["input_file_id"],
        "completion_window": "24h",
        "status": row["status"],
        "output_file_id": row["output_file_id"],
        "error_file_id": row["error_file_id"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        **{name: row[name] for name in TIMES},
        "request_counts": {"total": total, "completed": completed, "failed": failed},
        "metadata": json.loads(row["metadata"]),
    }
