"""Each stage of the sampler against its definition, on logits small enough to check by hand."""

import math
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from tests.engine.builders import picture_prompt, sequence, text_prompt
from vl2.engine import sampler
from vl2.engine.batch import sampling_arrays, sampling_inputs
from vl2.engine.scheduler import Chunk, StepBatch, StepOutput
from vl2.engine.sequence import Sequence
from vl2.ops import torch_backend


def choose(logits: list[float], *sequences: Sequence) -> list[int]:
    chunks = [Chunk.of(seq, 0, len(seq.token_ids)) for seq in sequences]
    return sample(torch.tensor([logits] * len(sequences)), StepBatch(chunks, [])).token_ids


def sample(logits: torch.Tensor, batch: StepBatch) -> StepOutput:
    return sampler.choose(torch_backend, logits, sampling_inputs(batch, logits.device))


def shares(logits: list[float], draws: int = 2000, **params: float) -> list[float]:
    """How often each token is drawn over many output positions."""
    seq = sequence(text_prompt(0), **params)
    counts = [0] * len(logits)
    for _ in range(draws):
        [token_id] = choose(logits, seq)
        counts[token_id] += 1
        seq.token_ids.append(0)  # next output position, next draw
    return [count / draws for count in counts]


def answer(seq: Sequence, token_id: int) -> None:
    seq.expect()
    seq.resolve(len(seq.token_ids) - 1, token_id, eos_token_id=9)


def test_temperature_zero_takes_the_best_and_of_equal_ones_the_lowest_id():
    assert choose([1.0, 3.0, 3.0], sequence(text_prompt(0))) == [1]


def test_draws_follow_the_softmax_at_the_temperature():
    logits = [math.log(0.5), math.log(0.3), math.log(0.2)]
    assert shares(logits, temperature=1.0) == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
    squared = [p * p for p in (0.5, 0.3, 0.2)]
    assert shares(logits, temperature=0.5) == pytest.approx([p / sum(squared) for p in squared], abs=0.04)


def test_what_float32_and_int32_cannot_hold_is_the_nearest_that_they_can(monkeypatch: pytest.MonkeyPatch):
    """A draw of 1 would lie behind all tokens; a number too large would end all requests of its step."""
    monkeypatch.setattr("vl2.engine.batch.uniform", lambda _: 1 - 2**-53)
    arrays = sampling_arrays([sequence(text_prompt(0), temperature=1.0, top_k=2**40)], 2)
    assert arrays["uniforms"].tolist() == [1 - 2**-24, 0] and arrays["top_ks"].tolist() == [2**31 - 1, 0]


def test_top_k_top_p_and_min_p_cut_the_tail():
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    assert shares(logits, temperature=1.0, top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.04)
    assert shares(logits, temperature=1.0, top_p=0.6) == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.04)
    assert shares(logits, temperature=1.0, min_p=0.45) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0], abs=0.04)


def test_top_p_counts_the_mass_that_top_k_left():
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    # After top_k = 2 the first token has 4/7 of the mass, so top_p = 0.5 keeps it alone.
    assert shares(logits, draws=50, temperature=1.0, top_k=2, top_p=0.5) == [1.0, 0, 0, 0]


def test_a_draw_depends_on_seed_choice_and_position_alone():
    logits = [0.0] * 50
    seq = sequence(text_prompt(0), temperature=1.0, seed=3)
    others = [sequence(text_prompt(0), temperature=1.0, seed=seed) for seed in range(5)]
    alone = choose(logits, seq)
    assert choose(logits, *others, seq)[-1:] == alone
    assert len(set(choose(logits, *others))) > 1


def test_repetition_penalty_counts_prompt_and_output():
    # Positive logits are divided, negative ones multiplied (the rule of Hugging Face's processor).
    assert choose([2.0, 1.9], sequence(text_prompt(0), repetition_penalty=1.1)) == [1]
    assert choose([-2.0, -2.1], sequence(text_prompt(0), repetition_penalty=1.1)) == [1]


def test_presence_and_frequency_penalties_count_the_output_only():
    assert choose([2.0, 1.9], sequence(text_prompt(0), presence_penalty=1.0)) == [0]
    seq = sequence(text_prompt(5), presence_penalty=0.05)
    answer(seq, 0)
    assert choose([2.0, 1.9], seq) == [0]
    seq = sequence(text_prompt(5), frequency_penalty=0.06)
    for _ in range(2):
        answer(seq, 0)
    assert choose([2.0, 1.9], seq) == [1], "two occurrences cost 0.12"


def test_logit_bias_comes_first():
    assert choose([0.0, 1.0], sequence(text_prompt(9), logit_bias={0: 5.0})) == [0]
    # before the penalty: (0 + 5) / 10 = 0.5 < 1
    assert choose([0.0, 1.0], sequence(text_prompt(0), logit_bias={0: 5.0}, repetition_penalty=10.0)) == [1]


def test_an_ngram_is_not_repeated_but_pictures_do_not_count():
    seq = sequence(text_prompt(2, 3, 4, 2, 3), no_repeat_ngram_size=3)
    assert choose([0.0, 0.0, 0.0, 0.0, 9.0, 1.0], seq) == [5]
    seq = sequence(picture_prompt(b"cat", after=(9, 9)), no_repeat_ngram_size=2)
    banned = seq.ngrams.banned(seq.token_ids) if seq.ngrams else set()
    assert banned == {9}, "the pair after the picture counts, the picture's own tokens do not"


def test_logprobs_are_those_of_the_raw_logits():
    logits = [1.0, 2.0, 3.0]
    seq = sequence(text_prompt(0), temperature=1.0, top_k=1, logit_bias={0: 50.0}, logprobs=2)
    output = sample(torch.tensor([logits]), StepBatch([Chunk.of(seq, 0, 1)], []))
    expected = torch.tensor(logits).log_softmax(-1).tolist()
    assert output.token_ids == [0]
    [logprobs] = output.logprobs
    assert logprobs is not None and logprobs.logprob == pytest.approx(expected[0])
    assert [token_id for token_id, _ in logprobs.top] == [2, 1]


class FixedMask:
    """Stands for a `Constraint` whose grammar allows these tokens."""

    def __init__(self, *allowed: bool) -> None:
        self.next_mask: Future[np.ndarray] = Future()
        self.next_mask.set_result(np.array(allowed))


def under(mask: FixedMask, **params: object) -> Sequence:
    seq = sequence(text_prompt(0), **params)
    seq.constraint = mask  # type: ignore[assignment]
    return seq


def test_a_grammar_rules_tokens_out_of_its_row_alone():
    mask = FixedMask(True, False, True)
    free = sequence(text_prompt(0))
    assert choose([1.0, 3.0, 2.0], free, under(mask), free) == [1, 2, 1]
    drawn = {choose([1.0, 9.0, 2.0], under(mask, temperature=2.0, seed=seed))[0] for seed in range(40)}
    assert drawn == {0, 2}


def test_a_ban_of_all_that_a_grammar_allows_does_not_count():
    seq = under(FixedMask(False, False, True, True), no_repeat_ngram_size=1)
    seq.token_ids = [2, 3]
    assert seq.ngrams is not None and seq.ngrams.banned(seq.token_ids) == {2, 3}
    assert choose([9.0, 9.0, 1.0, 2.0], seq) == [3]
