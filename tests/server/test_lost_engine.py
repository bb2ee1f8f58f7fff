"""What clients and probes are told when the engine is lost for good, or does not answer."""

from __future__ import annotations

from fakes import FakeModel
from server.bodies import Connect, chat
from vl2.core.stats import ReplicaStats


async def test_a_lost_engine_is_told_as_such(connect: Connect) -> None:
    model = FakeModel(is_ready=False)
    model.is_failed = True
    client = connect(model)
    assert (await client.get("/health/live")).status_code == 503
    response = await client.post("/v1/chat/completions", json=chat())
    assert response.status_code == 503
    assert "could not be started again" in response.json()["error"]["message"]


async def test_an_engine_that_does_not_answer_has_no_counters(connect: Connect) -> None:
    class Silent(FakeModel):
        async def replica_stats(self) -> list[ReplicaStats]:
            return [ReplicaStats(True, None)]

    lines = (await connect(Silent()).get("/metrics")).text.splitlines()
    assert [line for line in lines if line.startswith("vl2_engine_")] == [
        'vl2_engine_ready{model="fake",replica="0"} 1.0'
    ]
