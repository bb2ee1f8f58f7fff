"""What steps cost and hold, by kind."""

from __future__ import annotations

from vl2.core.stats import STEP_SECONDS_BOUNDS, STEP_SEQUENCES_BOUNDS, Tally
from vl2.engine.pacing import StepLoad

STEP_KINDS = ("decode", "prefill", "mixed", "vision")


def kind_of(load: StepLoad) -> str:
    """vision: with tiles, whatever else; mixed: prompts beside running answers."""
    if load.num_tiles:
        return "vision"
    if load.num_prefill_tokens:
        return "mixed" if load.num_decodes else "prefill"
    return "decode"


class StepMeter:
    def __init__(self) -> None:
        self.seconds = {kind: Tally(STEP_SECONDS_BOUNDS) for kind in STEP_KINDS}
        self.sequences = Tally(STEP_SEQUENCES_BOUNDS)

    def observe(self, load: StepLoad, num_sequences: int, seconds: float) -> None:
        self.seconds[kind_of(load)].observe(seconds)
        self.sequences.observe(num_sequences)
