"""What is gathered between two readings comes out as if each token had been observed by itself."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from vl2.core.types import Delta
from vl2.server.metrics import Metrics
from vl2.server.metrics import tokens as module
from vl2.server.metrics.catalogue import INTER_TOKEN_SECONDS
from vl2.server.metrics.tokens import TokenClock


def values(metrics: Metrics) -> dict[str, float]:
    """Of the token metrics; buckets by their bound."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    samples = [sample for family in families for sample in family.samples]
    return {sample.name + sample.labels.get("le", ""): sample.value for sample in samples if "token" in sample.name}


def delta(num_tokens: int, choice: int = 0) -> Delta:
    return Delta(choice_idx=choice, text="", token_ids=tuple(range(num_tokens)))


def test_gaps_are_of_each_choice_and_shared_by_the_tokens_of_a_piece(monkeypatch) -> None:
    metrics, now_s = Metrics("nano"), [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    clock = TokenClock(metrics.tokens)
    for pause_s, piece in ((0, delta(1)), (0.5, delta(1, choice=1)), (0.03, delta(2)), (1, delta(0)), (2, delta(1))):
        now_s[0] += pause_s
        clock.observe(piece)
    found = values(metrics)
    assert found["vl2_generated_tokens_total"] == 5
    assert found["vl2_inter_token_seconds_count"] == 3, "the first of each choice has nothing before it"
    assert abs(found["vl2_inter_token_seconds_sum"] - 3.53) < 1e-9  # two of 0.265 s, one of 3 s
    prefix = "vl2_inter_token_seconds_bucket"
    below = {float(name.removeprefix(prefix)): count for name, count in found.items() if name.startswith(prefix)}
    assert list(below)[:-1] == list(INTER_TOKEN_SECONDS.buckets or ())
    assert all(count == (bound >= 0.265) * 2 + (bound >= 3) for bound, count in below.items())


def test_they_are_passed_on_ten_times_a_second_and_when_a_request_ends(monkeypatch) -> None:
    metrics, now_s, passed = Metrics("nano"), [100.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    original = metrics.tokens.pass_on
    monkeypatch.setattr(metrics.tokens, "pass_on", lambda: (passed.append(now_s[0]), original())[1])
    clock = TokenClock(metrics.tokens)
    for _ in range(100):
        clock.observe(delta(1))
        now_s[0] += 0.01
    assert 9 <= len(passed) <= 11
    metrics.count_request("/v1/chat/completions", 200, None, 1.0)
    assert values(metrics)["vl2_generated_tokens_total"] == 100
