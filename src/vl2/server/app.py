"""The wiring of the server: which layers a request passes, and which routes there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from vl2 import __version__
from vl2.core.config import ProcessorConfig, ServerConfig
from vl2.core.errors import SetupError
from vl2.core.interface import ChatModel
from vl2.server.access import RecordRequests
from vl2.server.addresses import fetch_rules
from vl2.server.anthropic.routes import anthropic_routes
from vl2.server.auth import RequireKey
from vl2.server.batch.batches import BatchStore
from vl2.server.batch.database import Database
from vl2.server.batch.files import FileStore
from vl2.server.batch.routes import State, batch_routes
from vl2.server.batch.runner import BatchRunner
from vl2.server.chat import ChatService, ReadFileOf
from vl2.server.counting import counting_routes
from vl2.server.drain import Drain, DrainRequests
from vl2.server.errors import ERROR_RESPONSES, install_error_handlers
from vl2.server.fetch import PictureFetcher
from vl2.server.guard import Guard
from vl2.server.health import health_routes
from vl2.server.ids import NodeIds
from vl2.server.intake import LimitBody
from vl2.server.metrics import Metrics, metrics_routes
from vl2.server.openai.routes import openai_routes
from vl2.server.page import page_routes
from vl2.server.pictures import picture_routes
from vl2.server.predict import predict_routes
from vl2.server.quotas import Quotas
from vl2.server.responses.routes import responses_routes
from vl2.server.responses.store import ResponseStore
from vl2.server.results import ResultCache
from vl2.server.shared import HubState, SharedState
from vl2.server.status import ServerStatus, status_routes
from vl2.server.tenants import KeyRing
from vl2.server.tracing import Tracing
from vl2.server.warm import warm_up

logger = logging.getLogger(__name__)


def create_app(
    llm: ChatModel,
    config: ServerConfig,
    *,
    max_image_bytes: int = ProcessorConfig().max_image_bytes,
    fetcher: PictureFetcher | None = None,
    on_setup_error: Callable[[SetupError], None] | None = None,
    shared: SharedState | None = None,
) -> FastAPI:
    """The server for `llm`, which it starts and stops unless it is running already.

    The app answers while the model loads (503 where the model is needed). If it cannot start, `on_setup_error` is
    called in the event loop: the place to end the process. `shared`: this is one of several front-ends, and what they
    share is kept by the hub (see `server.shared`).
    """
    fetcher = fetcher or PictureFetcher(
        allowed_folder=config.allow_dir,
        timeout_s=config.fetch_timeout_s,
        max_bytes=max_image_bytes,
        rules=fetch_rules(config),
    )
    metrics = Metrics(config.served_model_name or llm.name)
    tracing = Tracing.of(config, metrics.model)
    drain, ids = Drain(), NodeIds(config.node_name)
    quotas, store = Quotas(), ResponseStore(config.max_stored_responses, config.max_stored_response_bytes)
    keys = KeyRing(config.api_key, config.keys_file)
    database = Database(Path(config.state_dir)) if config.state_dir and shared is None else None
    files = FileStore(database, ids, config.max_state_bytes) if database else None
    service = ChatService(
        llm,
        metrics.model,
        fetcher,
        metrics,
        max_pictures=config.max_pictures,
        is_cache_shared=config.shared_cache,
        read_file=_file_reader(config, files, shared),
        results=ResultCache(config.result_cache_bytes // config.frontends) if config.result_cache_bytes else None,
        has_many_tenants=lambda: keys.has_many_tenants,
    )

    async def starting() -> None:
        warming = asyncio.ensure_future(warm_up(app, llm))
        try:
            if shared is not None:  # the engines may be ready: nobody is welcome before
                await warming
            await _start(llm, on_setup_error)
            await warming
        except BaseException:
            warming.cancel()
            raise

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _running(llm, starting), _running_batches(state):
            yield
        await fetcher.aclose()
        if tracing is not None:
            await asyncio.to_thread(tracing.shutdown)

    app = FastAPI(title="vl2", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.config, app.state.metrics, app.state.drain = config, metrics, drain
    app.state.hub = HubState(quotas, store, files)
    app.state.status = status = ServerStatus(llm, service.model_name, service.rates)
    state = None
    if database is not None and files is not None:
        batches = BatchStore(database, ids)
        runner = BatchRunner(
            app, batches, files, concurrency=config.batch_concurrency, max_lines=config.max_batch_lines
        )
        state = State(files, batches, runner)
    install_error_handlers(app)
    routes = list(app.routes)
    for router in (
        openai_routes(service),
        responses_routes(service, shared or store, ids),
        anthropic_routes(service, ids),
        counting_routes(service),
        picture_routes(service),
        batch_routes(state),
        predict_routes(service, fetcher),
        health_routes(llm, drain),
        *([metrics_routes(llm, metrics, drain), status_routes(status)] if config.admin_port is None else []),
        page_routes(has_status=config.admin_port is None),
    ):
        app.include_router(router, responses=ERROR_RESPONSES)
        routes += router.routes
    app.add_middleware(LimitBody, max_bytes=config.max_body_bytes)  # the innermost
    app.add_middleware(DrainRequests, drain=drain)
    app.add_middleware(RequireKey, keys=keys, scrape_key=config.scrape_key, quotas=shared or quotas)
    app.add_middleware(Guard, hosts=config.allowed_host, origins=config.allowed_origin, needs_keys=not keys.is_open)
    app.add_middleware(RecordRequests, metrics=metrics, routes=routes, tracing=tracing)  # the outermost
    return app


def _file_reader(config: ServerConfig, files: FileStore | None, shared: SharedState | None) -> ReadFileOf | None:
    if shared is not None and config.state_dir:
        return shared.read_file
    return files.read if files else None


@asynccontextmanager
async def _running_batches(state: State | None) -> AsyncIterator[None]:
    if state is None:
        yield
        return
    await state.runner.start()
    try:
        yield
    finally:
        await state.runner.stop()
        state.files.database.close()


@asynccontextmanager
async def _running(llm: ChatModel, starting: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    if llm.is_ready:
        yield  # whoever started it stops it
        return
    task = asyncio.ensure_future(starting())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await llm.stop()


async def _start(llm: ChatModel, on_setup_error: Callable[[SetupError], None] | None) -> None:
    try:
        await llm.start()
    except SetupError as error:
        if on_setup_error is None:
            logger.error("the model cannot start: %s", error.message)
        else:
            on_setup_error(error)
    except Exception:
        logger.exception("the model could not start")
        raise
