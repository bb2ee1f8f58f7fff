"""A client that calls the app directly, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from fakes import FakeModel
from server.bodies import Connect
from vl2.core.config import ServerConfig
from vl2.core.secret import Secret
from vl2.server.app import create_app
from vl2.server.fetch import PictureFetcher


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`connect(model, fetcher=…, api_key=…)` → a client of a new app. Its lifespan does not run."""
    async with AsyncExitStack() as stack:

        def make(model: FakeModel | None = None, *, fetcher: PictureFetcher | None = None, **config: Any) -> Any:
            config["api_key"] = tuple(map(Secret, config.get("api_key", ())))
            app = create_app(model or FakeModel(), ServerConfig(**config), fetcher=fetcher)
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
            stack.push_async_callback(client.aclose)
            return client

        yield make
