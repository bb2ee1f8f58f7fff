"""A single token's experts, which their own kernel chooses in passing: as a kernel of its own would choose them."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import TypeAlias

import pytest
import torch

from tests.ops.test_ops import moe_config
from tests.ops.test_quantized_kernels import DTYPES, FP8, INT4, INT8, experts_of
from vl2.core.model_config import MoEConfig
from vl2.core.quantization import WeightScheme
from vl2.model.linear import RMSNorm
from vl2.model.moe import MoE
from vl2.ops import triton_backend
from vl2.ops.experts import kernel_one
from vl2.ops.experts.mixture import Mixture, add_up
from vl2.ops.experts.weights import ExpertWeights
from vl2.ops.gate import kernel as gate
from vl2.ops.gate.kernel_common import Undecided
from vl2.ops.quantized_experts import kernel_held
from vl2.ops.quantized_experts.weights import QuantizedExperts
from vl2.ops.quantized_weight import triton_layout
from vl2.ops.rows import RowRounding
from vl2.ops.single_row.kernel_common import Tile as RowTile

AnyExperts: TypeAlias = ExpertWeights | QuantizedExperts
WIDTH, INNER, EXPERTS, ACTIVE = 128, 128, 11, 3
CONFIG = moe_config(num_experts=EXPERTS, num_active=ACTIVE, expert_width=INNER, shared_width=0)
SOFTMAX, SIGMOID = CONFIG, replace(CONFIG, scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=2.5)
BIASED = replace(SIGMOID, topk_method="noaux_tc")
NAN, INF = math.nan, math.inf
LOGITS = {
    "any": None,
    "equal": [1.0] * EXPERTS,
    "pairs of equals": [0.5, 2.0, -1.0, 2.0, 0.5, -3.0, -1.0, 2.0, 0.5, 0.0, -0.0],
    "zeros of both signs": [-0.0, 0.0, -0.0, -1.0, -2.0, -1.0, 0.0, -5.0, -6.0, -7.0, -8.0],
    "sigmoids that are 1": [-4.0, 20.0, 90.0, 18.0, 3.0, 25.0, -2.0, 0.0, 1.0, 2.0, 5.0],
    "no numbers": [NAN, -4.0, NAN, -9.0, NAN, NAN, -1.0, NAN, -3.0, NAN, NAN],
    "hardly a number": [NAN, NAN, NAN, NAN, -2.0, NAN, NAN, NAN, NAN, NAN, NAN],
    "infinite": [-INF, -INF, 3.0, -INF, -INF, -INF, -INF, -INF, -INF, -INF, -INF],
}


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs, as the interpreter takes one after the other; of gate-up two for each expert."""
    for bits in kernel_one.TILES:
        monkeypatch.setitem(kernel_one.TILES, bits, (RowTile(64, 128, 4), RowTile(128, 128, 4)))
    monkeypatch.setattr(kernel_held, "ONE", kernel_held.Tile(64, 128, 32, 2))


def draw(*shape: int, device: torch.device) -> torch.Tensor:
    return (torch.randn(*shape, device=device) * 0.1).to(DTYPES[-1])


def dense(num_shared: int, device: torch.device) -> ExpertWeights:
    shared = None, None
    if num_shared:
        shared = draw(2 * num_shared * INNER, WIDTH, device=device), draw(WIDTH, num_shared * INNER, device=device)
    routed = draw(EXPERTS, 2 * INNER, WIDTH, device=device), draw(EXPERTS, WIDTH, INNER, device=device)
    return ExpertWeights(*routed, *shared)


def some_experts(scheme: WeightScheme | None, num_shared: int, device: torch.device) -> AnyExperts:
    if scheme is None:
        return dense(num_shared, device)
    all_experts = experts_of(scheme, triton_layout, DTYPES[-1], device, EXPERTS - 4 + num_shared, WIDTH, INNER)[0]
    return replace(all_experts, num_shared=num_shared)


def mix(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    experts: AnyExperts,
    num_shared: int,
    undecided: Undecided | None = None,
) -> Mixture:
    if isinstance(experts, QuantizedExperts) and experts.gate_up.scheme.bits == 4:
        return kernel_held.mix_held(x, ids, weights, experts, undecided=undecided)
    return kernel_one.mix_single(x, ids, weights, experts, num_shared, undecided)


@pytest.mark.parametrize(
    ("scheme", "num_shared", "name"),
    [
        *((None, 1, name) for name in LOGITS),
        (None, 0, "any"),
        *((scheme, *of) for scheme in (INT4, INT8, FP8) for of in ((0, "any"), (2, "pairs of equals"))),
    ],
)
@pytest.mark.parametrize("config", [SOFTMAX, SIGMOID, BIASED], ids=["softmax", "sigmoid", "bias"])
def test_it_is_what_a_choice_made_before_leads_to(
    device: torch.device, scheme: WeightScheme | None, num_shared: int, name: str, config: MoEConfig
) -> None:
    """Bit for bit. A program that found another expert than it says would multiply with other weights."""
    torch.manual_seed(len(name))
    experts = some_experts(scheme, num_shared, device)
    x, bias = draw(1, WIDTH, device=device) * 10, None
    logits = torch.tensor([LOGITS[name]], device=device) if LOGITS[name] else torch.randn(1, EXPERTS, device=device)
    if config is BIASED:
        bias = torch.tensor([0.0, 0.25] * EXPERTS, device=device)[:EXPERTS]  # so that equals stay
    ids, weights = gate.choose(logits, bias, config)
    expected = mix(x, ids, weights, experts, num_shared)
    own_ids, own_weights = torch.full_like(ids, -1), torch.full_like(weights, -1.0)
    out = mix(x, own_ids, own_weights, experts, num_shared, Undecided(logits, bias, config))
    assert own_ids.tolist() == ids.tolist() and len(ids.unique()) == ACTIVE
    assert torch.equal(own_weights.view(torch.int32), weights.view(torch.int32))
    assert torch.equal(out.results, expected.results) and out.weights is own_weights


@pytest.mark.parametrize("scheme", [None, INT4, INT8, FP8])
def test_from_the_norm_on(device: torch.device, scheme: WeightScheme | None) -> None:
    torch.manual_seed(0)
    experts = some_experts(scheme, 1, device)
    norm, router = torch.ones(WIDTH, device=device).to(DTYPES[-1]), torch.randn(EXPERTS, WIDTH, device=device)
    given = draw(1, WIDTH, device=device), draw(1, WIDTH, device=device), norm, 1e-6, router, None, CONFIG
    total, normed, ids, weights = gate.norm_and_route(*given)
    own_total, own_normed, out = triton_backend.norm_and_mix(*given, experts)
    assert torch.equal(own_total, total) and torch.equal(own_normed, normed) and torch.equal(out.weights, weights)
    assert torch.equal(add_up(out), add_up(mix(normed, ids, weights, experts, 1)))


@pytest.mark.parametrize("what", ["float32", "4 and 8 bits", "softmax and bias", "groups"])
def test_others_are_chosen_before(device: torch.device, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl2.ops.single_token.Undecided", None)  # nothing may be left undecided
    dtype, experts, config, bias = DTYPES[-1], dense(1, device), CONFIG, None
    if what == "float32":
        dtype, parts = torch.float32, (experts.gate_up, experts.down, experts.shared_gate_up, experts.shared_down)
        experts = ExpertWeights(*(part.float() for part in parts))
    if what == "4 and 8 bits":
        experts = replace(some_experts(INT8, 1, device), down=some_experts(INT4, 1, device).down)
    if what == "softmax and bias":
        config, bias = replace(CONFIG, topk_method="noaux_tc"), torch.randn(EXPERTS, device=device)
    if what == "groups":
        config = replace(CONFIG, topk_method="group_limited_greedy", num_groups=EXPERTS, num_active_groups=4)
    norm, router = torch.ones(WIDTH, device=device, dtype=dtype), torch.randn(EXPERTS, WIDTH, device=device)
    x, delta = (draw(1, WIDTH, device=device).to(dtype) for _ in range(2))
    given = x, delta, norm, 1e-6, router, bias, config
    _, normed, ids, weights = gate.norm_and_route(*given)
    is_quantized = isinstance(experts, QuantizedExperts)
    expected = (triton_backend.mix_quantized_experts if is_quantized else triton_backend.mix_experts)(
        normed, ids, weights, experts
    )
    assert torch.equal(add_up(triton_backend.norm_and_mix(*given, experts)[2]), add_up(expected))


@pytest.mark.parametrize("is_apart", [False, True])
def test_a_layer_of_experts_takes_a_single_token_so(device: torch.device, is_apart: bool) -> None:
    """Shared experts that run apart, as those of which a checkpoint has some quantised, are given the normed row."""
    torch.manual_seed(3)
    config, dtype = replace(CONFIG, shared_width=2 * INNER), DTYPES[-1]
    layer = MoE(WIDTH, config, triton_backend, dtype=dtype, device=device)
    norm = RMSNorm(WIDTH, 1e-6, triton_backend, dtype=dtype, device=device)
    for parameter in (*layer.parameters(), *norm.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    x, delta = draw(1, WIDTH, device=device), draw(1, WIDTH, device=device)
    experts = ExpertWeights(layer.gate_up, layer.down, None, None), True
    patch = pytest.MonkeyPatch()
    with patch.context() as patched, torch.inference_mode():
        if is_apart:
            patched.setattr(MoE, "expert_weights", experts)
        total, out = layer.norm_and_mix(norm, x, delta, None, RowRounding())
        patched.setattr(triton_backend, "norm_and_mix", None)
        expected_total, expected = layer.norm_and_mix(norm, x, delta, None, RowRounding())
    assert isinstance(out, torch.Tensor) == is_apart
    assert torch.equal(total, expected_total) and torch.equal(add_up(out), add_up(expected))


COMPILE = """
import json
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vl2.ops.experts import kernel_one
from vl2.ops.quantized_experts import kernel_held

what, num_warps, block_e, has_bias = sys.argv[1], *(int(number) for number in sys.argv[2:])
constants = dict(
    HAS_BIAS=bool(has_bias), IS_SOFTMAX=not has_bias, NORMS=bool(has_bias), BLOCK_E=block_e, NUM_WARPS=num_warps,
    NUM_CHOSEN=6, BLOCK_S=16, GROUP_STEPS=1, HAS_ASM=True, CHAINED=True,
)
pointers = dict.fromkeys(("weights", "logits", "bias"), "*fp32") | dict(x="*bf16", hidden="*bf16")
if what != "held":
    numbers, scale = ("*bf16", "*bf16") if what == "dense" else ("*fp8e4nv", "*fp32")
    kernel = kernel_one._gate_up
    pointers |= dict(ids="*i32", gate_up=numbers, scales=scale, shared=numbers)
    constants |= dict(NUM_SHARED=2, IS_APART=what == "dense", STEP=128, BITS=16 if what == "dense" else 8, BLOCK_N=4)
else:
    kernel, pointers = kernel_held._gate_up, pointers | dict(codes="*i16", scales="*bf16")
    pointers |= dict(pairs="*i32", block_experts="*i32")
    constants |= dict(NUM_ACTIVE=8, BLOCK_N=16, NUM_STEPS=16, WORDS=32, PLANES=4, GROUP=8)
names = kernel.arg_names
types = dict.fromkeys(names, "i32") | dict.fromkeys(constants, "constexpr") | pointers | dict(scaling="fp32")
odd = (*constants, "scaling", "num_blocks", "num_pairs", "num_experts", "num_routed")
aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name not in odd}
options = dict(num_warps=num_warps, num_stages=1, launch_pdl=True)
ptx = triton.compile(
    ASTSource(kernel, types, constants, aligned), target=GPUTarget("cuda", 90, 32), options=options
).asm["ptx"]
found = ptx[ptx.index("redux.sync.max"):]
loop = found[:found.index("bra")]
print(json.dumps({word: loop.count(word) for word in ("redux.sync", "bar.sync", "shfl", "shared")}))
print(json.dumps({word: ptx.count(word) for word in ("griddepcontrol.launch_dependents", "fence.acq_rel.gpu")}))
"""


@pytest.mark.cpu_only
@pytest.mark.parametrize(("what", "num_warps"), [("dense", 8), ("float8", 2), ("held", 2)])
@pytest.mark.parametrize(("block_e", "has_bias"), [(64, 0), (128, 1)])
def test_on_hopper_a_warp_finds_its_expert_by_itself(what: str, num_warps: int, block_e: int, has_bias: int) -> None:
    """Two instructions for the best of all, and nothing that passes between threads or warps; the next kernel starts
    only when all have released it, what the first program wrote being there before it ends."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, what, *map(str, (num_warps, block_e, has_bias))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    step, whole = (json.loads(line) for line in done.stdout.splitlines())
    assert step == {"redux.sync": 2, "bar.sync": 0, "shfl": 0, "shared": 0}
    assert whole == {"griddepcontrol.launch_dependents": 1, "fence.acq_rel.gpu": 1}
