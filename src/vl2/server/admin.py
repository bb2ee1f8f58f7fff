"""The second port: numbers and probes for the operator's own network, without keys."""

from __future__ import annotations

from fastapi import FastAPI

from vl2.core.interface import ChatModel
from vl2.server.drain import Drain
from vl2.server.errors import install_error_handlers
from vl2.server.health import health_routes
from vl2.server.metrics import Metrics, metrics_routes
from vl2.server.page import page_routes
from vl2.server.status import ServerStatus, status_routes


def create_admin_app(llm: ChatModel, metrics: Metrics, drain: Drain, status: ServerStatus) -> FastAPI:
    """For `--admin-port`; it starts and stops nothing."""
    app = FastAPI(title="vl2 admin", docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)
    app.include_router(health_routes(llm, drain))
    app.include_router(metrics_routes(llm, metrics, drain))
    app.include_router(status_routes(status))
    app.include_router(page_routes(has_chat=False))
    return app
