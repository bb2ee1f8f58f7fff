"""What the device keeps of running sequences."""

import pytest
import torch

from golden_cases import load_variant
from tests.parity.steps import build_engine, case_prompt, greedy


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["mla-greedy", "mha-greedy"])
@pytest.mark.parametrize("max_step_tokens", [4096, 20], ids=["whole prompts", "prompts in parts"])
def test_launching_a_step_waits_for_no_other(name: str, max_step_tokens: int):
    """Torch raises at whatever makes the host wait for the device; the one event that tokens come with is not such."""
    variant = load_variant(name)
    engine = build_engine(variant.name, max_sequences=4, max_step_tokens=max_step_tokens)
    prompts = {key: case_prompt(variant.case(key)) for key in ("text", "square")}
    greedy(engine, prompts, max_tokens=3)  # kernels are compiled, libraries have what they keep
    launch, errors = engine.runner.launch, []

    def watched(batch):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(batch)
        except RuntimeError as error:  # the engine would end the requests and go on
            errors.append(str(error))
            raise
        finally:
            torch.cuda.set_sync_debug_mode("default")

    engine.runner.launch = watched
    for graphs in (engine.runner.prompt_graphs, None):  # prompts in graphs, then launched piece by piece
        engine.runner.prompt_graphs = graphs
        greedy(engine, prompts, max_tokens=3)
        assert not errors
