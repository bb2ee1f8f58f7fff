"""Traces, received as a collector does: OTLP over HTTP, by the protocol's own types."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import FakeModel, answer
from server.bodies import chat
from tests.collector import Span, collecting
from vl2.core.config import ServerConfig
from vl2.core.errors import EngineError, SetupError
from vl2.core.types import Timing, Usage
from vl2.server.app import create_app

TIMING = Timing(queue_s=0.004, vision_s=0.03, prefill_s=0.2, decode_s=1)
USAGE = Usage(10, 4, image_tokens=4, cached_tokens=2, timing=TIMING)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # the example of the W3C's recommendation
STAGES = ["read", "process", "queue", "vision", "prefill", "decode"]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    with collecting() as found:
        yield found


async def ask(endpoint: str, model: FakeModel, headers: dict[str, str] | None = None, **config: Any) -> httpx.Response:
    """One question to an app that lives for as long; at its end all spans are out."""
    app = create_app(model, ServerConfig(otlp_endpoint=endpoint, **config))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await client.get("/health/ready")
        return await client.post("/v1/chat/completions", json=chat(), headers=headers)


async def test_a_request_is_a_span_with_one_for_each_stage(collector) -> None:
    endpoint, spans = collector
    await ask(endpoint, FakeModel(answer("A red square.", usage=USAGE)))
    [root] = [span for span in spans if not span.parent_id]
    assert root.name == "POST /v1/chat/completions" and not root.is_error
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["gen_ai.usage.input_tokens"] == 10 and root.attributes["gen_ai.usage.output_tokens"] == 4
    stages = sorted((span for span in spans if span.parent_id == root.span_id), key=lambda span: span.start_s)
    assert sorted(span.name for span in stages) == sorted(STAGES)
    by_name = {span.name: span for span in stages}
    for name in ("queue", "vision", "prefill", "decode"):
        assert by_name[name].end_s - by_name[name].start_s == pytest.approx(getattr(TIMING, f"{name}_s"), abs=1e-4)
    for before, after in itertools.pairwise(STAGES):
        assert by_name[before].end_s == pytest.approx(by_name[after].start_s, abs=1e-4)
    assert by_name["vision"].attributes["vl2.image_tokens"] == 4
    assert re.fullmatch("[0-9a-f]{16}", by_name["process"].attributes["vl2.prompt.hash"])


async def test_the_callers_trace_goes_on_and_is_told_back(collector) -> None:
    endpoint, spans = collector
    response = await ask(endpoint, FakeModel(answer("Yes.", usage=USAGE)), {"traceparent": PARENT})
    [root] = [span for span in spans if span.name.startswith("POST")]
    assert (root.trace_id, root.parent_id) == (PARENT[3:35], PARENT[36:52])
    assert response.headers["traceparent"] == f"00-{root.trace_id}-{root.span_id}-01"
    assert all(span.trace_id == root.trace_id for span in spans)


@pytest.mark.parametrize(
    ("share", "parent", "is_traced"),
    [(0.0, None, False), (0.0, PARENT, True), (1.0, PARENT[:-1] + "0", False), (1.0, "nonsense", True)],
)
async def test_the_caller_decides_and_else_the_share(
    collector, share: float, parent: str | None, is_traced: bool
) -> None:
    endpoint, spans = collector
    headers = {} if parent is None else {"traceparent": parent}
    response = await ask(endpoint, FakeModel(answer("Yes.", usage=USAGE)), headers, trace_share=share)
    assert bool(spans) is is_traced
    is_sampled = int(response.headers["traceparent"][-2:], 16) & 1
    assert is_sampled == is_traced


async def test_what_broke_is_an_error_with_its_code(collector) -> None:
    endpoint, spans = collector
    await ask(endpoint, FakeModel([EngineError("out of luck")]))
    [root] = [span for span in spans if not span.parent_id]
    assert root.is_error and root.attributes["error.type"] == "engine_error"


async def test_nothing_of_what_was_said_is_in_a_trace(collector) -> None:
    endpoint, spans = collector
    await ask(endpoint, FakeModel(answer("A secret square.", usage=USAGE)))
    assert "secret" not in str([vars(span) for span in spans])


def test_without_the_extra_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SetupError, match=r"vl2\[traces\]"):
        create_app(FakeModel(), ServerConfig(otlp_endpoint="http://127.0.0.1:1"))
