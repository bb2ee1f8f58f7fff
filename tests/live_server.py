"""An app behind uvicorn, on loopback, in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def answering(app: Any, *, port: int = 0, force_exit: bool = False, **uvicorn_config: Any) -> Iterator[str]:
    """Its address, http://127.0.0.1:PORT. `force_exit`: streams that are still open are not waited for at the end."""
    server = uvicorn.Server(uvicorn.Config(app, **({"log_config": None, "access_log": False} | uvicorn_config)))
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"  # it listens already: a client waits in line
        finally:
            server.should_exit, server.force_exit = True, force_exit
            thread.join(60)
