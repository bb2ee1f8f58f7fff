"""A real server on loopback, in a thread, with a scripted model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from fakes import FakeModel
from page.user import User
from tests.live_server import answering
from vl2.core.config import ServerConfig
from vl2.core.secret import Secret
from vl2.server.app import create_app
from vl2.server.fetch import PictureFetcher

Serve = Callable[..., str]
"""The fixture `serve`: model, options of ServerConfig → address."""
Open = Callable[..., User]
"""The fixture `open_page`: address, options of the browser → someone who looks at it."""


@contextlib.contextmanager
def running(model: FakeModel, *, port: int = 0, fetcher: PictureFetcher | None = None, **config: Any) -> Iterator[str]:
    config["api_key"] = tuple(map(Secret, config.get("api_key", ())))
    app = create_app(model, ServerConfig(**config), fetcher=fetcher)
    with answering(app, port=port, force_exit=True, lifespan="off") as url:
        yield url
