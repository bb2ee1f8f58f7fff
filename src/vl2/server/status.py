"""GET /status/data: how the server is, for the page at /status; the numbers of one moment, and of the last answers."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter

from vl2 import __version__
from vl2.core.interface import ChatModel
from vl2.core.stats import ReplicaStats
from vl2.server.metrics import read_stats
from vl2.server.rates import Pace, Rates

NUM_SHOWN = 120
"""Answers of the sparkline."""
PACKAGES = ("torch", "triton", "llguidance", "pillow", "fastapi", "uvicorn")


@dataclass(frozen=True)
class ServerStatus:
    """What `/status/data` is made of, on whichever port it is asked."""

    llm: ChatModel
    model_name: str
    rates: Rates
    started_s: float = field(default_factory=time.monotonic)

    async def read(self) -> dict[str, Any]:
        info = asdict(self.llm.info) if self.llm.is_ready else None
        return {
            "model": self.model_name,
            "state": "failed" if self.llm.is_failed else "ready" if self.llm.is_ready else "loading",
            "uptime_s": round(time.monotonic() - self.started_s, 1),
            "info": info,
            "replicas": replicas_json(await read_stats(self.llm)),
            "recent": [pace_json(pace) for pace in self.rates.newest(NUM_SHOWN)],
            "versions": versions(),
        }


def replicas_json(replicas: Sequence[ReplicaStats]) -> list[dict[str, Any]]:
    """`stats` is null where nobody knows: the replica is not ready, or did not answer in time."""
    return [
        {
            "is_ready": replica.is_ready,
            "stats": asdict(replica.stats) if replica.is_ready and replica.stats is not None else None,
            "gpu": asdict(replica.gpu) if replica.gpu is not None else None,
        }
        for replica in replicas
    ]


def pace_json(pace: Pace) -> dict[str, Any]:
    return {
        "first_token_s": round(pace.first_token_s, 4),
        "total_s": round(pace.first_token_s + pace.decode_s, 4),
        "tokens": pace.decoded_tokens + 1,
    }


@functools.cache
def versions() -> dict[str, str]:
    found = {name: _version(name) for name in PACKAGES}
    own = {"vl2": __version__, "python": platform.python_version()}
    return own | {name: number for name, number in found.items() if number is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # triton, where there is no GPU
        return None


def status_routes(status: ServerStatus) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/status/data", summary="Replicas, queue, pages, recent answers and versions, for the page at /status")
    async def read_status() -> dict[str, Any]:
        return await status.read()

    return router
