"""What the server does for its first requests before they come: done, and told nowhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import httpx
import pytest
from PIL import Image

from fakes import FakeModel
from vl2.core.config import ProcessorConfig, ServerConfig
from vl2.core.types import Message, Prompt
from vl2.processing.images import open_image
from vl2.server import warm
from vl2.server.app import create_app


class Watched(FakeModel):
    def __init__(self) -> None:
        super().__init__(is_ready=False)
        self.seen: list[Image.Image] = []

    async def process(self, messages: Sequence[Message], tenant: str = "") -> Prompt:
        self.seen += [open_image(picture, ProcessorConfig()) for one in messages for picture in one.images]
        return await super().process(messages, tenant)


async def ready(model: FakeModel) -> None:
    while not model.is_ready:
        await asyncio.sleep(0)


async def test_pictures_are_cut_and_a_question_is_read_while_the_model_loads() -> None:
    statuses: list[int] = []

    def watch(app):
        async def watched(scope, receive, send):
            async def note(message):
                statuses.extend([message["status"]] if "status" in message else [])
                await send(message)

            await app(scope, receive, note)

        return watched

    model = Watched()
    app = create_app(model, ServerConfig(api_key=(), allowed_host=("vl2.example",)))
    app.middleware_stack = watch(app.build_middleware_stack())
    await warm.warm_up(app, model)
    assert [picture.size for picture in model.seen] == [warm.SIZE] * warm.NUM_PICTURES
    assert len({id(picture) for picture in model.seen}) == warm.NUM_PICTURES
    assert statuses == [400]  # read, and refused for its fields: neither for a host, nor a key, nor the model
    assert not model.asked


async def test_no_number_and_no_log_tells_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "vl2")
    model = FakeModel(is_ready=False)
    app = create_app(model, ServerConfig())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        await ready(model)
        while len(model.counted_for) < warm.NUM_PICTURES:
            await asyncio.sleep(0)
        numbers = (await client.get("/metrics")).text.splitlines()
    counted = [line for line in numbers if line.startswith("vl2_requests_total{") and not line.endswith(" 0.0")]
    assert not [line for line in counted if warm.PATH in line]
    assert not [record for record in caplog.records if warm.PATH in record.getMessage()]


async def test_a_server_that_cannot_warm_up_starts_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeModel):
        async def process(self, messages: Sequence[Message], tenant: str = "") -> Prompt:
            raise OSError("no more threads")

    model = Broken(is_ready=False)
    app = create_app(model, ServerConfig())
    async with app.router.lifespan_context(app):
        await ready(model)
        await warm.warm_up(app, model)
    assert "could not warm up" in caplog.text
