"""Tokens and the time between them: counted thousands of times a second, passed on to the metrics ten times."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Counter, Histogram

from vl2.core.types import Delta

PASS_ON_S = 0.1


class GatheredHistogram(Histogram):
    """Takes what was sorted into its buckets elsewhere; one by one, each observation locks twice and walks them."""

    @property
    def bounds(self) -> Sequence[float]:
        return self._upper_bounds

    def add(self, counts: Sequence[int], total: float) -> None:
        """counts [buckets]: observations of each; `total`: the sum of all of them."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class TokenTally:
    """Of one process."""

    def __init__(self, generated: Counter, between_s: GatheredHistogram) -> None:
        self._generated, self._between_s, self._bounds = generated, between_s, between_s.bounds
        self._num_tokens, self._total_s = 0, 0.0
        self._counts = [0] * len(self._bounds)
        self._due_s = 0.0

    def count(self, num_tokens: int, gap_s: float | None, now_s: float) -> None:
        """`gap_s` before each of them; None: nothing was before."""
        self._num_tokens += num_tokens
        if gap_s is not None:
            self._counts[bisect_left(self._bounds, gap_s)] += num_tokens
            self._total_s += gap_s * num_tokens
        if now_s >= self._due_s:
            self.pass_on()
            self._due_s = now_s + PASS_ON_S

    def pass_on(self) -> None:
        """Also when a request ends and when someone reads, so that no reader misses what a client has seen."""
        if not self._num_tokens:
            return
        self._generated.inc(self._num_tokens)
        self._between_s.add(self._counts, self._total_s)
        self._num_tokens, self._total_s = 0, 0.0
        self._counts = [0] * len(self._counts)


class TokenClock:
    """Counts one request's tokens as they come by, and the time between them."""

    def __init__(self, tally: TokenTally) -> None:
        self._tally = tally
        self._last_s: dict[int, float] = {}  # choice → when its last token came

    def observe(self, delta: Delta) -> None:
        if not delta.token_ids:
            return
        now_s, num_tokens = time.monotonic(), len(delta.token_ids)
        last_s = self._last_s.get(delta.choice_idx)
        self._tally.count(num_tokens, None if last_s is None else (now_s - last_s) / num_tokens, now_s)
        self._last_s[delta.choice_idx] = now_s
