"""The scheduler alone: steps are taken with an imagined model that always answers token 7."""

import pytest

from tests.engine.builders import EOS_ID, picture_prompt, request, scheduler, sequence, text_prompt
from vl2.core.types import FinishReason, QueueOptions, TokenEvent
from vl2.engine.pacing import MIN_PREFILL_TOKENS, STALL_FACTOR, Pacer, StepLoad, unnoticed_step_s
from vl2.engine.scheduler import Scheduler, StepBatch, StepOutput
from vl2.engine.sequence import Sequence


def take(scheduler: Scheduler, batch: StepBatch, token_id: int = 7) -> list[TokenEvent]:
    num = len(batch.sampled)
    scheduler.advance(batch)
    return scheduler.update(batch, StepOutput([token_id] * num, [None] * num))


def lengths(batch: StepBatch) -> list[int]:
    return [chunk.length for chunk in batch.chunks]


def test_a_prompt_is_computed_in_chunks_and_then_decoded_one_token_a_step():
    s = scheduler(tokens=4)
    s.add(sequence(text_prompt(*range(10)), max_tokens=2))
    seen = []
    while s.has_work:
        batch = s.schedule()
        seen.append(lengths(batch))
        take(s, batch)
    assert seen == [[4], [4], [2], [1]]
    assert s.pages.num_free == s.pages.num_pages


def test_running_answers_go_on_while_a_prompt_is_computed():
    s = scheduler(tokens=4)
    s.add(sequence(text_prompt(1, 2)))
    take(s, s.schedule())
    s.add(sequence(text_prompt(*range(10))))
    assert lengths(s.schedule()) == [1, 4], "one token of the running answer, and a chunk of the prompt"


def test_an_answer_ends_at_eos_at_a_stop_token_and_at_max_tokens():
    cases = [(EOS_ID, {}, FinishReason.STOP), (7, {"stop_token_ids": (7,)}, FinishReason.STOP)]
    for token_id, params, reason in [
        *cases,
        (7, {"max_tokens": 1}, FinishReason.LENGTH),
        (EOS_ID, {"ignore_eos": True}, None),
    ]:
        s = scheduler()
        s.add(sequence(text_prompt(1, 2), **params))
        [event] = take(s, s.schedule(), token_id)
        assert event.finish_reason is reason


def test_the_context_ends_an_answer():
    s = scheduler()
    s.add(sequence(text_prompt(1, 2, 3), max_context_tokens=4, max_tokens=100))
    [event] = take(s, s.schedule())
    assert event.finish_reason is FinishReason.LENGTH


def test_when_pages_run_out_the_youngest_starts_over_later_with_what_it_has_generated():
    s = scheduler(pages=2)
    old, young = sequence(text_prompt(1, 2, 3, 4), max_tokens=3), sequence(text_prompt(5, 6, 7), max_tokens=3)
    s.add(old)
    s.add(young)
    take(s, s.schedule())
    batch = s.schedule()  # `old` needs a second page
    assert [chunk.sequence for chunk in batch.chunks] == [old]
    assert s.counts.preemptions == 1 and s.waiting[0] is young and young.token_ids == [5, 6, 7, 7]
    while s.has_work:
        take(s, s.schedule())
    assert old.num_output_tokens == young.num_output_tokens == 3
    assert s.pages.num_free == 2


def test_no_more_tiles_than_the_budget_are_encoded_in_a_step_and_the_chunk_waits_for_them():
    s = scheduler(tiles=1)
    s.add(sequence(picture_prompt(b"cat", before=(0, 0))))
    first = s.schedule()
    assert len(first.tile_jobs) == 1 and lengths(first) == [2], "only the text before the picture"
    take(s, first)
    second = s.schedule()
    assert len(second.tile_jobs) == 1 and lengths(second) == [7]


def test_two_questions_about_one_picture_encode_it_once():
    s = scheduler()
    s.add(sequence(picture_prompt(b"cat")))
    s.add(sequence(picture_prompt(b"cat")))
    batch = s.schedule()
    assert len(batch.chunks) == 2 and len(batch.tile_jobs) == 2, "global and local view, once each"


def test_more_pictures_than_slots_are_encoded_one_after_the_other():
    s = scheduler(slots=2)
    s.add(sequence(picture_prompt(b"cat", b"dog", b"cow"), max_tokens=1))
    steps = 0
    while s.has_work:
        take(s, s.schedule())
        steps += 1
    assert steps == 3


def test_a_cancelled_request_gives_back_its_pages_and_slots():
    s = scheduler()
    seq = sequence(picture_prompt(b"cat"))
    s.add(seq)
    s.schedule()
    s.abort(seq.request_id)
    assert not s.has_work and s.pages.num_free == s.pages.num_pages
    assert s.tiles.acquire([bytes([i]) for i in range(s.tiles.num_slots)]) is not None


def test_one_choice_can_be_cancelled_alone():
    s = scheduler()
    r = request(text_prompt(1, 2), n=2)
    for idx in range(2):
        s.add(Sequence(r, idx, 100))
    take(s, s.schedule())
    s.abort(r.request_id, 0)
    assert [seq.choice_idx for seq in s.sequences()] == [1]


def test_a_failed_step_names_the_requests_it_concerns_and_frees_them():
    s = scheduler(sequences=1)
    failing, waiting = sequence(picture_prompt(b"cat")), sequence(text_prompt(1))
    s.add(failing)
    s.add(waiting)
    assert s.fail(s.schedule()) == [failing.request_id]
    assert list(s.sequences()) == [waiting] and s.pages.num_free == s.pages.num_pages


def test_a_prompt_that_begins_like_an_earlier_one_is_computed_from_where_they_part():
    s = scheduler()
    s.add(sequence(text_prompt(1, 2, 3, 4, 5, 6, 7, 8, 9), max_tokens=1))
    take(s, s.schedule())
    s.add(sequence(text_prompt(1, 2, 3, 4, 5, 6, 0, 8), max_tokens=1))
    batch = s.schedule()
    assert [(chunk.start, chunk.length) for chunk in batch.chunks] == [(4, 4)], "one full page of four is the same"
    [event] = take(s, batch)
    assert event.num_cached_tokens == 4


def test_of_a_prompt_that_is_known_whole_the_last_token_is_computed_for_its_logits():
    s = scheduler()
    for _ in range(2):
        s.add(sequence(text_prompt(1, 2, 3, 4, 5, 6, 7, 8), max_tokens=1))
        batch = s.schedule()
        take(s, batch)
    assert [(chunk.start, chunk.length) for chunk in batch.chunks] == [(4, 4)], "no page is shared that must be written"


def test_an_answer_can_be_the_prefix_of_the_next_turn():
    s = scheduler()
    s.add(sequence(text_prompt(1, 2, 3), max_tokens=3))
    while s.has_work:
        take(s, s.schedule())  # 1 2 3 7 7 7, of which five are in the cache
    s.add(sequence(text_prompt(1, 2, 3, 7, 7, 7, 2, 2), max_tokens=1))
    assert lengths(s.schedule()) == [4]


def test_where_answers_are_computed_otherwise_than_prompts_a_step_is_of_one_kind():
    s = scheduler(tokens=4, replays=True)
    s.add(sequence(text_prompt(1, 2), max_tokens=5))
    take(s, s.schedule())
    s.add(sequence(text_prompt(*range(9)), max_tokens=2))
    seen = []
    while s.has_work:
        batch = s.schedule()
        seen.append((batch.is_decode, lengths(batch)))
        take(s, batch)
    decode, prompt = (True, [1]), False
    prompts = [(prompt, [4]), decode, (prompt, [4]), decode, (prompt, [1])]
    assert seen[:6] == [decode, *prompts], "one token of a prompt is a prompt"


def test_where_answers_are_computed_otherwise_than_prompts_a_preempted_one_is_generated_again():
    s = scheduler(replays=True)
    seq = sequence(text_prompt(1, 2, 3, 4), max_tokens=8)
    s.add(seq)
    for _ in range(3):
        take(s, s.schedule())  # 1 2 3 4 | 7 7 7
    s.preempt(seq)
    seen = []
    while len(seq.token_ids) < 8:
        batch = s.schedule()
        seen.append(([chunk.start for chunk in batch.chunks], batch.is_decode, len(batch.sampled)))
        take(s, batch)
    assert seen == [([4], True, 0), ([5], True, 0), ([6], True, 1)], "the prompt's page is known, its token was kept"


def test_where_answers_are_computed_otherwise_than_prompts_only_prompts_are_shared():
    s = scheduler(replays=True)
    s.add(sequence(text_prompt(1, 2, 3), max_tokens=6))
    while s.has_work:
        take(s, s.schedule())  # 1 2 3 | 7 7 7 7 7 7
    s.add(sequence(text_prompt(1, 2, 3, 7, 7, 7, 2, 2), max_tokens=1))
    assert lengths(s.schedule()) == [8]


def test_equal_ids_over_other_pictures_are_no_known_prefix():
    s = scheduler()
    for picture in (b"cat", b"dog", b"cat"):
        s.add(sequence(picture_prompt(picture, after=(5, 6, 7, 8)), max_tokens=1))
        batch = s.schedule()
        take(s, batch)
        computed = [chunk.length for chunk in batch.chunks]
        assert computed == ([2] if picture == b"cat" and s.counts.cached_tokens else [10])


def test_tenants_with_different_salts_share_nothing():
    s = scheduler()
    for salt in ("a", "b"):
        s.add(sequence(text_prompt(*range(9)), options=QueueOptions(cache_salt=salt), max_tokens=1))
        take(s, s.schedule())
    assert s.counts.cached_tokens == 0


def test_a_higher_priority_is_served_first_but_waiting_counts():
    s = scheduler(sequences=1)
    late = sequence(text_prompt(1), arrival_s=30.0, options=QueueOptions(priority=-2), max_tokens=1)
    early = sequence(text_prompt(2), arrival_s=0.0, max_tokens=1)
    urgent = sequence(text_prompt(3), arrival_s=15.0, options=QueueOptions(priority=-2), max_tokens=1)
    for seq in (late, early, urgent):
        s.add(seq)
    served = []
    while s.has_work:
        batch = s.schedule()
        served.append(batch.chunks[0].sequence)
        take(s, batch)
    assert served == [urgent, early, late]


def test_a_deadline_that_passes_in_the_queue_drops_the_request_but_not_one_that_has_begun():
    s = scheduler(sequences=1)
    begun, waiting = (sequence(text_prompt(i), options=QueueOptions(deadline_s=5.0)) for i in range(2))
    s.add(begun)
    s.add(waiting)
    take(s, s.schedule())
    assert s.expire(4.9) == []
    assert s.expire(5.0) == [waiting.request_id]
    assert list(s.sequences()) == [begun]


def test_a_choice_that_waits_does_not_end_the_request_whose_other_choice_is_or_was_under_way():
    asked = request(text_prompt(1), QueueOptions(deadline_s=5.0), n=2)
    s, (first, second) = scheduler(sequences=1), (Sequence(asked, choice, 1000) for choice in range(2))
    s.add(first)
    s.add(second)
    take(s, s.schedule())
    assert s.expire(6.0) == [] and list(s.sequences()) == [first, second]
    s.abort(asked.request_id, choice_idx=0)  # it has all that it needs
    assert s.expire(6.0) == [] and list(s.sequences()) == [second]


def test_the_pacer_gives_prompts_what_running_answers_can_spare():
    pacer = Pacer(max_prefill_tokens=1000, max_tiles=10)
    assert (pacer.prefill_tokens(0), pacer.tiles(0)) == (1000, 10), "nothing runs that could stall"
    pacer.learn(StepLoad(num_decodes=4, num_prefill_tokens=0, num_tiles=0), seconds=0.010)
    pacer.learn(StepLoad(num_decodes=0, num_prefill_tokens=100, num_tiles=0), seconds=0.020)
    spare_s = (STALL_FACTOR - 1) * 0.010
    assert pacer.prefill_tokens(4) == round(spare_s / 0.0002), "what fits into the spare time, at 0.2 ms a token"
    assert pacer.tiles(4) == 1


def test_the_pacer_learns_from_mixed_steps_when_there_are_no_others():
    pacer = Pacer(max_prefill_tokens=1000, max_tiles=10)
    pacer.learn(StepLoad(num_decodes=0, num_prefill_tokens=1000, num_tiles=0), seconds=0.100)
    assert pacer.prefill_tokens(4) == MIN_PREFILL_TOKENS, "what decoding takes is not known yet"
    for _ in range(50):
        tokens = pacer.prefill_tokens(4)
        pacer.learn(StepLoad(num_decodes=4, num_prefill_tokens=tokens, num_tiles=0), seconds=0.020 + tokens * 0.0001)
    assert 0.7 < pacer.prefill_tokens(4) * 0.0001 / ((STALL_FACTOR - 1) * 0.020) < 1.3


def test_the_pacer_finds_that_long_chunks_cost_less_a_token():
    pacer = Pacer(max_prefill_tokens=8192, max_tiles=10, unnoticed_step_s=0.020)
    for _ in range(8):
        tokens = pacer.prefill_tokens(8)
        pacer.learn(StepLoad(8, tokens, 0), seconds=0.002 + 0.0025 + tokens * 2e-6)
    assert 0.8 < pacer.prefill_tokens(8) * 2e-6 / 0.0155 < 1.2


def test_one_slow_step_does_not_make_the_pacer_timid():
    pacer = Pacer(max_prefill_tokens=8192, max_tiles=10, unnoticed_step_s=0.060)
    for load, seconds in ((StepLoad(0, 8192, 0), 0.080), (StepLoad(8, 0, 0), 0.010), (StepLoad(8, 5000, 0), 0.400)):
        pacer.learn(load, seconds)
    assert abs(pacer.prefill_tokens(8) - 5120) <= 1, "50 ms of 80 for 8,192"


def test_budgets_fill_the_steps_that_have_a_graph():
    pacer = Pacer(max_prefill_tokens=8192, max_tiles=10, unnoticed_step_s=0.020, step_sizes=[256, 2048, 4096])
    pacer.learn(StepLoad(num_decodes=0, num_prefill_tokens=8000, num_tiles=0), seconds=0.040)
    pacer.learn(StepLoad(num_decodes=8, num_prefill_tokens=0, num_tiles=0), seconds=0.002)
    assert pacer.prefill_tokens(8) == 2048 - 8, "3,600 are affordable"


@pytest.mark.parametrize("mixes", [True, False])
def test_where_steps_are_of_one_kind_two_of_prompts_may_come_before_the_answers(mixes: bool):
    pacer = Pacer(8192, 10, unnoticed_step_s=unnoticed_step_s(is_gpu=True, mixes=mixes), mixes=mixes)
    pacer.learn(StepLoad(num_decodes=0, num_prefill_tokens=8192, num_tiles=0), seconds=0.076)
    pacer.learn(StepLoad(num_decodes=8, num_prefill_tokens=0, num_tiles=0), seconds=0.006)
    assert pacer.allows(8192, 8192, num_decodes=8) is not mixes
    assert not pacer.allows(2 * 8192, 8192, num_decodes=8)


def test_where_nobody_notices_several_tiles_are_encoded_beside_answers():
    pacer = Pacer(max_prefill_tokens=8192, max_tiles=10, unnoticed_step_s=0.020)
    pacer.learn(StepLoad(num_decodes=8, num_prefill_tokens=0, num_tiles=0), seconds=0.002)
    assert pacer.tiles(8) == 1
    pacer.learn(StepLoad(num_decodes=8, num_prefill_tokens=0, num_tiles=1), seconds=0.005)
    assert pacer.tiles(8) == 6


def test_where_steps_are_short_anyway_prompts_get_more():
    pacer = Pacer(max_prefill_tokens=8192, max_tiles=10, unnoticed_step_s=0.020)
    pacer.learn(StepLoad(num_decodes=0, num_prefill_tokens=8000, num_tiles=0), seconds=0.020)
    pacer.learn(StepLoad(num_decodes=8, num_prefill_tokens=0, num_tiles=0), seconds=0.002)
    assert abs(pacer.prefill_tokens(8) - 0.018 / 2.5e-6) <= 1
