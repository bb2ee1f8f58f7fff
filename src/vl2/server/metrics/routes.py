"""GET /metrics."""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest

from vl2.core.interface import ChatModel
from vl2.core.stats import ReplicaStats
from vl2.server.drain import Drain
from vl2.server.metrics.engines import EngineCollector
from vl2.server.metrics.requests import Metrics

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATS_TIMEOUT_S = 2.5  # a scrape must not wait for an engine that hangs; a little more than the client's own 2 s


def metrics_routes(llm: ChatModel, metrics: Metrics, drain: Drain) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", summary="Measurements for Prometheus", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        is_ready = llm.is_ready and not drain.is_draining
        metrics.describe_server(is_ready=is_ready, info=llm.info if llm.is_ready else None)
        snapshot = CollectorRegistry()
        snapshot.register(EngineCollector(metrics.model, await read_stats(llm)))
        return Response(metrics.exposition() + generate_latest(snapshot), media_type=CONTENT_TYPE)

    return router


async def read_stats(llm: ChatModel) -> list[ReplicaStats]:
    """Empty when they do not answer in time."""
    try:
        return await asyncio.wait_for(llm.replica_stats(), STATS_TIMEOUT_S)
    except Exception:
        logger.exception("the engines did not give their statistics")
        return []
