"""GET /status/data, and who may read it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import httpx
import pytest

from fakes import FakeModel
from server.bodies import Connect, chat
from vl2.core.config import ServerConfig
from vl2.core.secret import Secret
from vl2.core.stats import GPUReading, ReplicaStats
from vl2.server.admin import create_admin_app
from vl2.server.drain import Drain
from vl2.server.metrics import Metrics
from vl2.server.rates import Pace, Rates
from vl2.server.status import NUM_SHOWN, ServerStatus

GPU_FIELDS = [field.name for field in dataclasses.fields(GPUReading)]


async def test_it_tells_replicas_recent_answers_and_versions(connect: Connect) -> None:
    client = connect(FakeModel(name="fake"))
    before = (await client.get("/status/data")).json()
    assert before["recent"] == []
    assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
    told = (await client.get("/status/data")).json()
    assert (told["model"], told["state"]) == ("fake", "ready")
    assert told["replicas"][0]["stats"]["num_pages"] == 256
    assert told["info"]["fingerprint"] == "vl2-d-test"
    (answer,) = told["recent"]
    assert 0 <= answer["first_token_s"] <= answer["total_s"]
    assert answer["tokens"] == 4
    assert {"vl2", "python", "torch"} <= set(told["versions"])


async def test_a_model_that_is_not_there_has_no_numbers_rather_than_zeros(connect: Connect) -> None:
    model = FakeModel(is_ready=False)
    client = connect(model)
    told = (await client.get("/status/data")).json()
    assert (told["state"], told["info"], told["replicas"]) == (
        "loading",
        None,
        [{"is_ready": False, "stats": None, "gpu": None}],
    )
    model.is_failed = True
    assert (await client.get("/status/data")).json()["state"] == "failed"


async def test_a_replica_that_does_not_answer_is_told_as_such(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FakeModel()

    async def stats() -> list[ReplicaStats]:
        return [ReplicaStats(True, None, GPUReading(utilization=0.5))]

    monkeypatch.setattr(model, "replica_stats", stats)
    (replica,) = (await connect(model).get("/status/data")).json()["replicas"]
    assert replica == {"is_ready": True, "stats": None, "gpu": {**dict.fromkeys(GPU_FIELDS), "utilization": 0.5}}


def test_only_the_newest_answers_are_told() -> None:
    rates = Rates()
    for idx in range(NUM_SHOWN + 5):
        rates.observe(Pace(1, float(idx), 1, 0.0))
    assert [pace.first_token_s for pace in rates.newest(NUM_SHOWN)] == [float(5 + idx) for idx in range(NUM_SHOWN)]


async def test_it_is_the_operators_as_the_metrics_are(connect: Connect, tmp_path: Path) -> None:
    async def status_for(client: httpx.AsyncClient, key: str | None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return (await client.get("/status/data", headers=headers)).status_code

    client = connect(api_key=["a"])
    assert [await status_for(client, key) for key in (None, "a")] == [401, 200]
    assert (await client.get("/status")).status_code == 200  # the page itself holds no numbers
    client = connect(api_key=["a"], scrape_key=Secret("s"))
    assert [await status_for(client, key) for key in ("a", "s")] == [401, 200]


async def test_the_admin_port_has_page_and_numbers() -> None:
    model, rates = FakeModel(), Rates()
    app = create_admin_app(model, Metrics("fake"), Drain(), ServerStatus(model, "fake", rates), ServerConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        assert (await client.get("/status")).headers["content-type"].startswith("text/html")
        assert (await client.get("/web/status.js")).status_code == 200
        assert (await client.get("/status/data")).json()["model"] == "fake"
        assert (await client.get("/")).status_code == 404


@pytest.mark.parametrize(("admin_host", "status"), [("127.0.0.1", 403), ("0.0.0.0", 200)])
async def test_a_page_that_made_its_name_lead_to_the_admin_port_is_refused(admin_host: str, status: int) -> None:
    """Where only this machine's own browsers can come; on a network of the operator's any name may be Prometheus."""
    model = FakeModel()
    config = ServerConfig(admin_host=admin_host)
    app = create_admin_app(model, Metrics("fake"), Drain(), ServerStatus(model, "fake", Rates()), config)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://evil.example") as client:
        answers = [await client.get(path) for path in ("/metrics", "/status/data", "/health/ready")]
    assert [answer.status_code for answer in answers] == [status, status, 200]
    assert all(answer.headers["x-content-type-options"] == "nosniff" for answer in answers)


async def test_with_an_admin_port_the_public_one_has_no_numbers(connect: Connect) -> None:
    assert (await connect(admin_port=0).get("/status/data")).status_code == 404
