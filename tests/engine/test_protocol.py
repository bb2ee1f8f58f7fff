import dataclasses

import numpy as np
import pytest

from tests.engine.builders import picture_prompt, request, text_prompt
from vl2.core.types import FinishReason, Grammar, TokenEvent, TokenLogprobs
from vl2.engine.protocol import Add, Events, decode_command, decode_report, encode


def test_a_request_crosses_with_its_pixels():
    sent = request(picture_prompt(b"cat"), temperature=0.5, logit_bias={3: 1.0}, stop=("x",))
    sent.prompt.tiles[0, 1, 2] = (1, 2, 3)
    command = decode_command(encode(Add(sent)))
    assert isinstance(command, Add)
    assert command.request.params == sent.params and command.request.prompt.spans == sent.prompt.spans
    assert np.array_equal(command.request.prompt.tiles, sent.prompt.tiles)
    assert command.request.prompt.tile_keys == sent.prompt.tile_keys


def test_pixels_are_a_frame_of_their_own_and_are_never_copied():
    sent = request(picture_prompt(b"cat"))
    header, pixels = encode(Add(sent))
    assert np.shares_memory(np.frombuffer(pixels, np.uint8), sent.prompt.tiles) and len(header) < 1000
    command = decode_command([header, pixels])
    assert isinstance(command, Add) and np.shares_memory(command.request.prompt.tiles, sent.prompt.tiles)
    assert len(encode(Add(request(text_prompt(1, 2))))) == 1  # no picture, no frame


def test_tiles_that_are_one_cross_once():
    sent = request(picture_prompt(b"cat"))
    one = np.arange(sent.prompt.tiles[0].size, dtype=np.uint8).reshape(sent.prompt.tiles[0].shape)
    sent = dataclasses.replace(
        sent, prompt=dataclasses.replace(sent.prompt, tiles=np.broadcast_to(one, (2, *one.shape)))
    )
    header, pixels = encode(Add(sent))
    assert len(pixels) == one.nbytes and np.shares_memory(np.frombuffer(pixels, np.uint8), one)
    command = decode_command([header, pixels])
    assert isinstance(command, Add)
    assert np.array_equal(command.request.prompt.tiles, sent.prompt.tiles)
    again = decode_command(encode(command))  # as the hub hands it on
    assert isinstance(again, Add) and np.array_equal(again.request.prompt.tiles, sent.prompt.tiles)


@pytest.mark.parametrize("grammar", [Grammar("choice", ("a", "b")), Grammar("regex", "a+"), Grammar("grounding")])
def test_a_grammar_crosses(grammar: Grammar):
    command = decode_command(encode(Add(request(picture_prompt(b"cat"), grammar=grammar))))
    assert isinstance(command, Add) and command.request.params.grammar == grammar


def test_events_cross_unchanged():
    event = TokenEvent("id", 1, 7, TokenLogprobs(-0.25, ((7, -0.25), (1, -2.0))), FinishReason.STOP)
    assert decode_report(encode(Events([event]))) == Events([event])
