"""The scheduler alone: steps are taken with an imagined model that always answers token 7."""

from tests.engine.builders import EOS_ID, picture_prompt, request, scheduler, sequence, text_prompt
from vl2.core.types import FinishReason, TokenEvent
from vl2.engine.scheduler import Scheduler, StepBatch, StepOutput


def take(scheduler: Scheduler, batch: StepBatch, token_id: int = 7) -> list[TokenEvent]:
    num = len(batch.sampled)
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


def test_running_answers_come_before_new_prompts_in_the_budget():
    s = scheduler(tokens=4)
    s.add(sequence(text_prompt(1, 2)))
    take(s, s.schedule())
    s.add(sequence(text_prompt(*range(10))))
    batch = s.schedule()
    assert lengths(batch) == [1, 3], "one token of the running answer, the rest of the budget for the prompt"


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
    s = scheduler(pages=2, page_size=4)
    old, young = sequence(text_prompt(1, 2, 3, 4), max_tokens=3), sequence(text_prompt(5, 6, 7), max_tokens=3)
    s.add(old)
    s.add(young)
    take(s, s.schedule())
    batch = s.schedule()  # `old` needs a second page
    assert [chunk.sequence for chunk in batch.chunks] == [old]
    assert s.preemptions_total == 1 and s.waiting[0] is young and young.token_ids == [5, 6, 7, 7]
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
    from vl2.engine.sequence import Sequence

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
