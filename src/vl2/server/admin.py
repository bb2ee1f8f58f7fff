"""The second port: numbers and probes for the operator's own network, without keys."""

from __future__ import annotations

from fastapi import FastAPI

from vl2.core.config import ServerConfig
from vl2.core.interface import ChatModel
from vl2.server.addresses import is_loopback
from vl2.server.drain import Drain
from vl2.server.errors import install_error_handlers
from vl2.server.guard import ANY, Guard
from vl2.server.health import health_routes
from vl2.server.metrics import Metrics, metrics_routes
from vl2.server.page import page_routes
from vl2.server.status import ServerStatus, status_routes


def create_admin_app(
    llm: ChatModel, metrics: Metrics, drain: Drain, status: ServerStatus, config: ServerConfig
) -> FastAPI:
    """For `--admin-port`; it starts and stops nothing.

    On this machine's own address a browser could be led here by a name of its own, so names are checked; elsewhere
    Prometheus comes under whatever name the operator's network gives it.
    """
    app = FastAPI(title="vl2 admin", docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)
    app.include_router(health_routes(llm, drain))
    app.include_router(metrics_routes(llm, metrics, drain))
    app.include_router(status_routes(status))
    app.include_router(page_routes(has_chat=False))
    hosts = config.allowed_host if is_loopback(config.admin_host) else (ANY,)
    app.add_middleware(Guard, hosts=hosts, origins=config.allowed_origin, needs_keys=False)
    return app
