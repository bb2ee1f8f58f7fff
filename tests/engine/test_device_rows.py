"""What the device keeps of running sequences."""

import pytest
import torch

from golden_cases import load_variant
from tests.engine.builders import sequence, text_prompt
from tests.parity.steps import build_engine, case_prompt, greedy
from vl2.core.types import GenerateRequest, Prompt, SamplingParams
from vl2.engine.device_rows import DeviceRows
from vl2.engine.scheduler import StepBatch, TileJob


def request(name: str, prompt: Prompt, max_tokens: int) -> GenerateRequest:
    return GenerateRequest(name, prompt, SamplingParams(max_tokens=max_tokens, seed=0, ignore_eos=True))


def test_pages_that_an_answer_got_beside_prompts_are_there_when_it_decodes_alone_again():
    """Steps with prompts bring tables of their own; these rows hear of no page that such a step filled."""
    rows, answer = DeviceRows(1, 6, torch.device("cpu")), sequence(text_prompt(1, 2))
    answer.row, answer.admission, answer.pages = 0, 1, [3]
    rows.enter([answer])
    answer.pages += [5, 7]  # more tokens than a page holds, all of them beside prompts
    rows.enter([answer])
    assert rows.block_tables[0].tolist()[:2] == [3, 5], "the page of the next token, 7, is written by its step"


@pytest.mark.parametrize("name", ["mla-greedy", "mha-greedy"])
def test_an_answer_is_the_same_if_it_runs_alone_then_beside_prompts_then_alone(name: str):
    engine = build_engine(load_variant(name).name, max_sequences=2, max_step_tokens=20)
    asked = {"text": case_prompt(load_variant(name).case("text"))}
    alone = [token for token, _ in greedy(engine, asked, max_tokens=90)["text"]]
    long = text_prompt(*range(10, 210), *range(20, 220))

    engine.add(request("text", asked["text"], 90))
    tokens: list[int] = []
    while engine.has_work:
        tokens += [event.token_id for event in engine.step() if event.request_id == "text"]
        if len(tokens) == 10:
            engine.add(request("long", long, 1))  # twenty steps, in which the answer fills a page and more
    assert tokens == alone


@pytest.mark.gpu
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


@pytest.mark.gpu
def test_a_step_that_only_encodes_tiles_tells_how_long_the_device_took():
    """The host is done at once, and the pacer would learn from it that tiles cost nothing beside answers."""
    case = load_variant("mla-greedy").case("square")
    engine, asked = build_engine("mla-greedy", device="cuda"), sequence(case_prompt(case))
    pending = engine.runner.launch(StepBatch([], [TileJob(asked, tile_idx=0, slot=0)]))
    assert pending.result().token_ids == [] and pending.seconds is not None and pending.seconds > 0
