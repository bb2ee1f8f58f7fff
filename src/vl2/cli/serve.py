"""vl2 serve: the HTTP server around a model."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vl2.cli import model as models
from vl2.cli.options import describe, model_argument, options
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig, ServerConfig
from vl2.core.errors import EngineError, SetupError, VL2Error

if TYPE_CHECKING:
    from vl2.llm import LLM

logger = logging.getLogger("vl2.serve")
READY_POLL_S = 0.02
BACKLOG = 2048


@click.command("serve")
@model_argument
@options(server=ServerConfig, engine=EngineConfig, processor=ProcessorConfig, hub=HubOptions)
def command(
    model: str, server: ServerConfig, engine: EngineConfig, processor: ProcessorConfig, hub: HubOptions
) -> None:
    """Serve MODEL over HTTP.

    There are the OpenAI chat API at /v1, /predict, a page to try it at /, /health and /metrics.

    MODEL is nano (built in, the default), tiny, small or base (the official DeepSeek-VL2 models, downloaded once), a
    checkpoint folder, or OWNER/NAME on the hub. On SIGTERM, running requests end first.

    \b
    vl2 serve                                  # then open http://127.0.0.1:8000
    vl2 serve tiny --dtype bfloat16 --host 0.0.0.0 --api-key "$KEY"
    vl2 serve /models/deepseek-vl2-small --offline
    vl2 serve tiny --hub modelscope
    """
    logging.basicConfig(level=server.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # would log the addresses of pictures
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # our own line tells when it is ready
    folder = server.allowed_image_folder
    if folder is not None and not Path(folder).is_dir():
        raise SetupError(f"--allowed-image-folder is {folder}, but there is no such folder")
    listener = bind(server.host, server.port)
    with listener, models.loading_bar() as on_progress:
        llm = models.open_model(
            model, engine=engine, processor=processor, hub=hub, in_process=False, on_progress=on_progress
        )
        logger.info("options: model=%s %s", model, describe(server=server, engine=engine, processor=processor, hub=hub))
        try:
            listener.listen(BACKLOG)  # not earlier: until now clients shall be refused, not kept waiting
        except OSError as error:
            raise _cannot_listen(server.host, server.port, error) from None
        asyncio.run(_serve(llm, listener, server, processor))


def bind(host: str, port: int) -> socket.socket:
    """Reserve the address before anything slow happens. Raises: SetupError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: Exception) -> SetupError:
    reason = getattr(error, "strerror", None) or error
    return SetupError(f"cannot listen on {host}:{port}: {reason}; choose another address with --host and --port")


async def _serve(llm: LLM, listener: socket.socket, config: ServerConfig, processor: ProcessorConfig) -> None:
    """Until SIGTERM or SIGINT. Raises: SetupError when the model cannot start, EngineError when it is lost."""
    import uvicorn

    from vl2.server.app import create_app

    failures: list[VL2Error] = []

    def fail(error: VL2Error) -> None:
        failures.append(error)
        server.should_exit = True

    async def watch() -> None:
        reason = await llm.wait_failed()
        fail(EngineError(f"the engine died and could not be started again: {reason}"))

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logger.info("stopping; %d requests are given %g s", len(self.server_state.tasks), config.drain_timeout_s)
            await super().shutdown(sockets)
            logger.info("stopped")

    app = create_app(llm, config, max_image_bytes=processor.max_image_bytes, on_setup_error=fail)
    server = Server(
        uvicorn.Config(
            app,
            backlog=BACKLOG,
            log_config=None,
            access_log=False,  # the app logs one line per finished request
            server_header=False,
            timeout_graceful_shutdown=max(1, round(config.drain_timeout_s)),
        )
    )
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: None)  # uvicorn drains, then repeats the signal to what was here before
    beside = [asyncio.create_task(_announce(llm, listener, config)), asyncio.create_task(watch())]
    await server.serve(sockets=[listener])
    for task in beside:
        task.cancel()
    if failures:
        raise failures[0]


async def _announce(llm: LLM, listener: socket.socket, config: ServerConfig) -> None:
    """One line when questions are welcome."""
    while not llm.is_ready:
        await asyncio.sleep(READY_POLL_S)
    host, port = listener.getsockname()[:2]
    is_open_to_all = host in ("0.0.0.0", "::")
    shown = "127.0.0.1" if is_open_to_all else f"[{host}]" if ":" in host else host
    name = config.served_model_name or llm.name
    click.echo(f"vl2: {name} answers at http://{shown}:{port} (page), http://{shown}:{port}/v1 (OpenAI API)")
    if not config.api_key and not host.startswith("127.") and host != "::1":
        logger.warning("no --api-key: everyone who reaches %s:%s can ask", host, port)
