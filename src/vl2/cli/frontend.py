"""A front-end process: `python -m vl2.cli.frontend NAME FD`, started by `cli/frontends.py`.

FD is the public listener. It ends when it is told to (SIGTERM: it drains), or with the hub.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vl2.cli.frontends import FrontendSetup, http_socket
from vl2.core.heap import keep_freed_memory, settle
from vl2.core.logs import be_quiet, configure_logging

if TYPE_CHECKING:
    from vl2.server.metrics import Metrics

DESCRIBE_S = 5.0


def main(name: str, fd: int) -> None:
    setup = _read_setup()
    threading.Thread(target=_end_with_hub, daemon=True, name="hub-watch").start()
    server = setup.server
    who = f"front-end {name.partition('.')[0]}"  # the same one in all its lives
    configure_logging(server.log_level.upper(), server.log_format, who)
    be_quiet()
    keep_freed_memory()
    with socket.socket(fileno=fd) as listener:
        asyncio.run(_serve(setup, name, who, listener))


def _read_setup() -> FrontendSetup:
    size = int.from_bytes(_read_exactly(8), "big")
    return FrontendSetup.decode(_read_exactly(size))


def _read_exactly(num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        part = os.read(0, num_bytes - len(data))  # not sys.stdin, which would read ahead
        if not part:
            sys.exit(1)
        data += part
    return data


def _end_with_hub() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


async def _serve(setup: FrontendSetup, name: str, who: str, listener: socket.socket) -> None:
    from vl2.cli.http import DrainingServer
    from vl2.engine.remote import RemoteGroup
    from vl2.llm import LLM
    from vl2.server.app import create_app
    from vl2.server.forward import ForwardToHub
    from vl2.server.shared import SharedState

    remote = RemoteGroup(Path(setup.hub_folder), name)
    llm = LLM(setup.model_folder, engine=setup.engine, processor=setup.processor, remote=remote)
    app = create_app(llm, setup.server, max_image_bytes=setup.processor.max_image_bytes, shared=SharedState(remote))
    drain, metrics = app.state.drain, app.state.metrics
    forwarding = ForwardToHub(app, http_socket(setup.hub_folder), drain)
    settle()
    describing = asyncio.create_task(_describe_for_ever(metrics, who))
    await DrainingServer(forwarding, setup.server, drain).serve(sockets=[listener])
    describing.cancel()


async def _describe_for_ever(metrics: Metrics, name: str) -> None:
    while True:
        metrics.describe_process(name)
        await asyncio.sleep(DESCRIBE_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
