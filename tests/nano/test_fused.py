"""The decoder by few kernels is the plain decoder: numbers, gradients, and the heads that are looked at."""

import pytest
import torch
from tests import interpreter  # noqa: F401 - before Triton is imported

import fused  # isort: skip
from config import CONFIG, initialise
from forward import NUMBER_IDS, PROBED, Output, answer_loss, bell, bells, text_mask

from model import NanoVL2

WIDTH = CONFIG["language_config"]["hidden_size"]


def results(is_fast: bool, rows: int, prefix: int, text: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    decoder = _decoder()
    decoder.fast = fused.decode if is_fast else None
    x = torch.randn(rows, prefix + text, WIDTH, requires_grad=True)
    place = torch.randint(0, 40, (rows, text)) + prefix
    positions = torch.cat((torch.arange(prefix).expand(rows, -1), place), 1)
    mask = text_mask(torch.randint(1, 4, (rows, text)).sort(-1).values, prefix)
    states = decoder(x, positions, prefix, mask)
    looked = [t for layer in decoder.model["layers"] if layer.self_attn.probe for t in layer.self_attn.seen]
    loads = [layer.mlp.gate.load for layer in decoder.model["layers"][1:]]
    out = [states[1], states[-1], *looked]
    sum((t * torch.randn(t.shape)).sum() for t in out).backward()
    return [t.detach() for t in (*out, *loads, x.grad, *(p.grad for p in decoder.parameters() if p.grad is not None))]


def _decoder():
    model = NanoVL2(CONFIG)
    initialise(model)
    for index, count in PROBED.items():
        model.language.model["layers"][index].self_attn.probe = count
    return model.language


def test_the_decoder_by_few_kernels_is_the_plain_one():
    sizes = dict(rows=2, prefix=19, text=10)  # neither full blocks of rows nor aligned
    for ours, plain in zip(results(True, **sizes), results(False, **sizes), strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-4, rtol=2e-4)


def test_a_text_behind_a_prefix_is_the_end_of_the_whole():
    torch.manual_seed(0)
    decoder, prefix, text = _decoder(), 19, 10
    x, positions = torch.randn(1, prefix + text, WIDTH), torch.arange(prefix + text)[None]
    behind = decoder(x, positions, prefix, text_mask(torch.ones(1, text, dtype=torch.long), prefix))[-1]
    whole = decoder(x, positions, prefix + text)[-1]
    torch.testing.assert_close(behind, whole[:, prefix:], atol=2e-5, rtol=2e-5)


def test_a_word_costs_its_logarithm_and_a_coordinate_the_mean_over_its_bell():
    torch.manual_seed(0)
    size = CONFIG["language_config"]["vocab_size"]
    target, coord = torch.tensor([7, int(NUMBER_IDS[300]), 9]), torch.tensor([-1, 300, -1])
    out = Output(torch.randn(3, size), target, torch.tensor([1.0, 0.5, 0.0]), coord, target, {})
    log_p = out.logits.log_softmax(-1)
    wanted = (-log_p[0, 7] - 0.5 * (log_p[1, NUMBER_IDS] * bell(2.0, "cpu")[300]).sum()) / 1.5
    torch.testing.assert_close(answer_loss(out, bells(2.0, size, "cpu")), wanted)


def test_the_check_finds_what_is_wrong():
    sizes = ((2, 19, 10),)
    fused.check("fused", "cpu", sizes)
    right, fused.decode = fused.decode, lambda *args: [t * 2 for t in right(*args)]
    try:
        with pytest.raises(RuntimeError, match="off by"):
            fused.check("fused", "cpu", sizes)
    finally:
        fused.decode = right
