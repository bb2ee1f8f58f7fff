"""vl2 serve: the HTTP server around a model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vl2.cli import model as models
from vl2.cli.frontends import shared_folder, sharing
from vl2.cli.options import describe, model_argument, options
from vl2.core.config import EngineConfig, HubOptions, ProcessorConfig, ServerConfig
from vl2.core.errors import EngineError, SetupError, VL2Error
from vl2.core.heap import keep_freed_memory, settle
from vl2.core.logs import be_quiet, configure_logging
from vl2.server.addresses import is_loopback

if TYPE_CHECKING:
    from vl2.cli.frontends import Frontends
    from vl2.llm import LLM

logger = logging.getLogger("vl2.serve")
READY_POLL_S = 0.02
BACKLOG = 2048
ABORTED = 130


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
    configure_logging(server.log_level.upper(), server.log_format)
    be_quiet()
    keep_freed_memory()
    folder = server.allow_dir
    if folder is not None and not Path(folder).is_dir():
        raise SetupError(f"--allow-dir is {folder}, but there is no such folder")
    check_exposure(server)
    listener = bind(server.host, server.port)
    with listener, shared_folder(server), models.loading_bar() as on_progress:
        llm = models.open_model(
            model, engine=engine, processor=processor, hub=hub, in_process=False, on_progress=on_progress
        )
        logger.info("options: model=%s %s", model, describe(server=server, engine=engine, processor=processor, hub=hub))
        listen(listener, server.host, server.port)  # not earlier: until now clients are refused, not kept waiting
        if asyncio.run(_serve(llm, listener, server, engine, processor)):
            raise click.exceptions.Exit(ABORTED)


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


def listen(listener: socket.socket, host: str, port: int) -> None:
    """From now on clients wait in line. Raises: SetupError."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None


def _cannot_listen(host: str, port: int, error: Exception) -> SetupError:
    reason = getattr(error, "strerror", None) or error
    return SetupError(f"cannot listen on {host}:{port}: {reason}; choose another address with --host and --port")


async def _serve(
    llm: LLM, listener: socket.socket, config: ServerConfig, engine: EngineConfig, processor: ProcessorConfig
) -> bool:
    """Until SIGTERM or SIGINT; returns whether a second one cut what still ran.

    Raises: SetupError when the model cannot start, EngineError when it is lost.
    """
    from vl2.cli.http import DrainingServer, admin_server
    from vl2.server.app import create_app

    failures: list[VL2Error] = []

    def fail(error: VL2Error) -> None:
        failures.append(error)
        server.should_exit = True

    async def watch() -> None:
        reason = await llm.wait_failed()
        fail(EngineError(f"the engine died and could not be started again: {reason}"))

    app = create_app(llm, config, max_image_bytes=processor.max_image_bytes, on_setup_error=fail)
    settle()
    async with contextlib.AsyncExitStack() as stack:
        frontends = None
        if config.frontends > 1:
            frontends = await stack.enter_async_context(sharing(llm, app, listener, config, engine, processor, fail))
        server = DrainingServer(app, config, app.state.drain, frontends=frontends)
        beside = [asyncio.create_task(_announce(llm, listener, config, frontends)), asyncio.create_task(watch())]
        if config.admin_port is not None:
            admin_listener = stack.enter_context(bind(config.admin_host, config.admin_port))
            listen(admin_listener, config.admin_host, config.admin_port)  # before it is said that there are answers
            admin = admin_server(llm, app)
            beside.append(asyncio.create_task(admin.serve(sockets=[admin_listener])))
        await server.serve(sockets=[listener] if frontends is None else None)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    if failures:
        raise failures[0]
    return server.is_aborted


def check_exposure(config: ServerConfig) -> None:
    """Raises: SetupError for what would let strangers in."""
    if (config.tls_cert is None) != (config.tls_key is None):
        raise SetupError("--tls-cert and --tls-key go together; give both, or none of them")
    for flag, file in {"--tls-cert": config.tls_cert, "--tls-key": config.tls_key}.items():
        if file is not None and not Path(file).is_file():
            raise SetupError(f"{flag} is {file}, but there is no such file")
    has_keys = bool(config.api_key) or config.keys_file is not None
    if not has_keys and not config.allow_without_keys and not is_loopback(config.host):
        raise SetupError(
            f"--host {config.host} can be reached from other machines, and there are no keys; set --api-key or "
            f"--keys-file, or --allow-without-keys if everyone may ask"
        )


async def _announce(llm: LLM, listener: socket.socket, config: ServerConfig, frontends: Frontends | None) -> None:
    """One line when questions are welcome."""
    while not (llm.is_ready and (frontends is None or frontends.are_welcoming)):
        await asyncio.sleep(READY_POLL_S)
    host, port = listener.getsockname()[:2]
    is_open_to_all = host in ("0.0.0.0", "::")
    shown = "127.0.0.1" if is_open_to_all else f"[{host}]" if ":" in host else host
    name = config.served_model_name or llm.name
    url = f"{'https' if config.tls_cert else 'http'}://{shown}:{port}"
    click.echo(f"vl2: {name} answers at {url} (page), {url}/v1 (OpenAI API)")
    if not config.api_key and config.keys_file is None and not is_loopback(host):
        logger.warning("there are no keys: everyone who reaches %s:%s can ask", host, port)
