"""Where an answer's time went, told by the real engine."""

from __future__ import annotations

import time

from PIL import Image

from vl2 import LLM, Message
from vl2.core.config import EngineConfig
from vl2.core.types import SamplingParams
from vl2.engine.clock import SequenceClock


def test_the_parts_add_up_to_the_whole() -> None:
    clock = SequenceClock(arrival_s=10.0)
    clock.begin(11.0)
    clock.begin(12.0)
    clock.vision_s = 0.5
    clock.token(13.0)
    clock.token(14.0)
    timing = clock.timing(17.0)
    assert (timing.queue_s, timing.vision_s, timing.prefill_s, timing.decode_s) == (1.0, 0.5, 1.5, 4.0)


def test_an_answer_about_a_picture_tells_its_vision_time() -> None:
    with LLM("nano", engine=EngineConfig(threads=1)) as llm:
        llm.chat("Warm up.", SamplingParams(max_tokens=2))
        for picture in (None, Image.new("RGB", (90, 60), "red")):
            started_s = time.monotonic()
            message = Message("user", "<image>\nWhat?", (picture,)) if picture else Message("user", "What?")
            timing = llm.chat([message], SamplingParams(max_tokens=8, ignore_eos=True)).usage.timing
            elapsed_s = time.monotonic() - started_s
            assert timing is not None
            assert (timing.vision_s > 0) is (picture is not None)
            assert timing.prefill_s > 0 and timing.decode_s > 0
            assert timing.queue_s + timing.vision_s + timing.prefill_s + timing.decode_s <= elapsed_s
