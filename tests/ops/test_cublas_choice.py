"""Which of cuBLASLt's algorithms a product has, how that is kept, and what is done without the library."""

import contextlib
import dataclasses
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vl2.engine.capture import capture
from vl2.model.linear import Linear, add_product
from vl2.ops import cublas, cublas_lt
from vl2.ops.cublas_choice import MANY_ROWS, Choices, choices_path
from vl2.ops.cublas_lt import CublasLtError, Epilogue, Product

PRODUCT = Product(1458, 1152, 4304, Epilogue.BIAS)
SLOW, FAST, OTHER = (bytes([number]) * cublas_lt.ALGORITHM_BYTES for number in range(3))


class FakeLibrary:
    version = 130200

    def __init__(self, fastest: bytes = FAST) -> None:
        self.fastest = fastest
        self.timed: list[int] = []
        self.unsupported: set[bytes] = set()
        self.named = [SLOW, FAST, OTHER]

    def candidates(self, product, most):
        return self.named[:most]

    def supports(self, product, algorithm):
        return algorithm not in self.unsupported

    def run(self, *arguments):
        raise NotImplementedError("the tests' work does not multiply")

    def seconds(self, works):
        self.timed.append(len(works))
        return [1.0 if work.args == (self.fastest,) else 2.0 for work in works]


@pytest.fixture(autouse=True)
def _no_graph_is_being_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "z9.products.json"


def ran(choices: Choices, product: Product = PRODUCT) -> list[bytes]:
    """The algorithm that the work was done with, after those that were tried."""
    done: list[bytes] = []
    assert choices.run(product, done.append) == bool(done)
    return done[-1:]


class Failing:
    """Work that some algorithms fail at."""

    def __init__(self, *failing: bytes) -> None:
        self.failing = failing
        self.done: list[bytes] = []

    def __call__(self, algorithm: bytes) -> None:
        if algorithm in self.failing:
            raise CublasLtError("cublasLtMatmul: status 13")
        self.done.append(algorithm)


def test_the_fastest_is_chosen_at_a_products_first_time_and_kept_for_the_next_start(path: Path):
    library = FakeLibrary()
    choices = Choices(library, path)
    assert ran(choices) == ran(choices) == [FAST] and library.timed == [3]
    assert {file.name for file in path.parent.iterdir()} == {path.name, "z9.products.lock"}, "nothing else is left"
    later = FakeLibrary(fastest=OTHER)
    assert ran(Choices(later, path)) == [FAST] and not later.timed, "as before, whatever timing would say now"


def test_each_product_has_a_choice_of_its_own(path: Path):
    library = FakeLibrary()
    choices = Choices(library, path)
    ran(choices)
    library.fastest = OTHER
    assert ran(choices, Product(1458, 1152, 4304, Epilogue.GELU_BIAS)) == [OTHER] and ran(choices) == [FAST]
    assert len(json.loads(path.read_text())["algorithms"]) == 2


def test_products_of_many_rows_are_tried_with_fewer_algorithms(path: Path):
    library = FakeLibrary()
    library.named = [bytes([number]) * cublas_lt.ALGORITHM_BYTES for number in range(20)]
    choices = Choices(library, path)
    for rows in (MANY_ROWS, MANY_ROWS + 1):
        ran(choices, Product(rows, 8, 8, Epilogue.BIAS))
    assert library.timed == [12, 6]


def test_choices_of_another_version_of_the_library_are_made_again(path: Path):
    ran(Choices(FakeLibrary(), path))
    library = FakeLibrary(fastest=OTHER)
    library.version += 1
    assert ran(Choices(library, path)) == [OTHER]
    assert json.loads(path.read_text())["library"] == library.version


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"library": 130200, "algorithms": {"x": "abc"}}',
             '{"library": 130200, "algorithms": {"x": "ab"}}', '{"library": 130200, "algorithms": {"x": 7}}'],
)  # fmt: skip
def test_a_broken_file_is_as_none(path: Path, text: str):
    path.parent.mkdir()
    path.write_text(text)
    assert ran(Choices(FakeLibrary(), path)) == [FAST]
    assert ran(Choices(FakeLibrary(fastest=OTHER), path)) == [FAST], "it was written anew"


def test_an_algorithm_that_the_library_does_not_support_any_more_is_replaced(path: Path):
    ran(Choices(FakeLibrary(), path))
    library = FakeLibrary(fastest=OTHER)
    library.unsupported.add(FAST)
    assert ran(Choices(library, path)) == [OTHER]
    assert ran(Choices(FakeLibrary(), path)) == [OTHER]


def test_of_two_processes_that_start_together_the_later_takes_the_choice_of_the_first(path: Path):
    first, second = Choices(FakeLibrary(), path), Choices(FakeLibrary(fastest=OTHER), path)
    assert ran(first) == ran(second) == [FAST]


def test_processes_that_write_at_once_agree_and_lose_nothing(path: Path):
    both = threading.Barrier(2)

    class Slow(Choices):
        def _read(self) -> dict[str, bytes]:
            kept = super()._read()
            with contextlib.suppress(threading.BrokenBarrierError):  # as only one gets here under the lock
                both.wait(timeout=0.5)
            return kept

    def start(fastest: bytes, own: Product) -> list[list[bytes]]:
        choices = Slow(FakeLibrary(fastest), path)
        return [ran(choices, product) for product in (PRODUCT, own)]

    own = [Product(rows, 8, 8, Epilogue.BIAS) for rows in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(start, (FAST, OTHER), own)
    assert one[0] == other[0] and (one[1], other[1]) == ([FAST], [OTHER])
    assert set(json.loads(path.read_text())["algorithms"]) == {str(product) for product in (PRODUCT, *own)}


def test_where_nothing_can_be_kept_nothing_is_timed_and_the_log_says_so_once(tmp_path: Path, caplog):
    (tmp_path / "file").touch()
    library = FakeLibrary()
    choices = Choices(library, tmp_path / "file" / "z9.json")
    for rows in range(1, 4):
        assert ran(choices, Product(rows, 8, 8, Epilogue.BIAS)) == [SLOW], "the heuristic's first"
    assert not library.timed
    [record] = caplog.records
    assert "cannot be kept" in record.message


def test_a_folder_that_can_be_written_no_more_is_as_one_that_never_could(path: Path, monkeypatch, caplog):
    library = FakeLibrary()
    choices = Choices(library, path)
    assert ran(choices) == [FAST]

    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    for rows in range(1, 4):
        assert ran(choices, Product(rows, 8, 8, Epilogue.BIAS)) == [SLOW], "which no timing decides"
    assert library.timed == [3, 3] and ran(choices) == [FAST]
    [record] = caplog.records
    assert "No space left" in record.message


def test_an_algorithm_that_fails_when_it_is_tried_is_left_out(path: Path, caplog):
    library = FakeLibrary()
    choices = Choices(library, path)
    work = Failing(SLOW, FAST)
    assert choices.run(PRODUCT, work) and work.done[-1] == OTHER and library.timed == [1]
    other, none_works = (Product(rows, 8, 8, Epilogue.BIAS) for rows in (1, 2))
    assert not choices.run(none_works, Failing(SLOW, FAST, OTHER)), "torch multiplies these"
    assert ran(choices, other) == [FAST], "and these have their own"
    assert not caplog.records


def test_where_nothing_can_be_kept_the_first_that_works_is_taken(tmp_path: Path):
    (tmp_path / "file").touch()
    choices = Choices(FakeLibrary(fastest=OTHER), tmp_path / "file" / "z9.json")
    work = Failing(SLOW)
    assert choices.run(PRODUCT, work) and set(work.done) == {FAST}


def test_a_graph_that_is_being_captured_times_nothing(path: Path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    library = FakeLibrary()
    assert ran(Choices(library, path)) == [] and not library.timed


def test_after_a_call_that_failed_torch_multiplies(path: Path, caplog):
    choices = Choices(FakeLibrary(), path)
    assert ran(choices) == [FAST]
    assert not choices.run(PRODUCT, Failing(FAST)) and ran(choices) == []
    assert ran(choices, Product(8, 8, 8, Epilogue.BIAS)) == []
    [record] = caplog.records
    assert "status 13" in record.message


def test_a_product_without_algorithms_is_torchs(path: Path):
    library = FakeLibrary()
    library.named = []
    assert ran(Choices(library, path)) == [] and not path.exists()


class FakeCalls:
    """The library's functions, one of which fails."""

    def __init__(self, failing: str) -> None:
        self.failing = failing
        self.called: list[str] = []

    def __getattr__(self, name: str):
        def call(*arguments) -> int:
            self.called.append(name)
            return 13 if name == self.failing else 0

        return call


@pytest.mark.parametrize("failing", ["cublasLtMatmulPreferenceSetAttribute", "cublasLtMatmulAlgoGetHeuristic"])
def test_a_preference_is_given_back_whatever_fails(monkeypatch, failing: str):
    calls = FakeCalls(failing)
    monkeypatch.setattr(cublas_lt, "_load", lambda: calls)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    with pytest.raises(CublasLtError, match=failing):
        cublas_lt.CublasLt(torch.device("cpu")).candidates(PRODUCT, 3)
    assert calls.called[-1] == "cublasLtMatmulPreferenceDestroy"


def test_choices_lie_beside_the_tiles_of_the_same_gpu(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choices_path("NVIDIA Z9") == tmp_path / ".cache/vl2/tiles/nvidia-z9.products.json"


def test_without_the_library_the_log_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(cublas_lt, "_loaded_path", lambda: "/nowhere/libcublasLt.so.13")
    cublas.choices_of.cache_clear()
    assert all(cublas.choices_of(torch.device("cuda")) is None for _ in range(2))
    cublas.choices_of.cache_clear()
    [record] = caplog.records
    assert "libcublasLt.so.13" in record.message


def test_on_a_cpu_products_are_torchs():
    x, weight, bias = (torch.randn(*shape).bfloat16() for shape in ((2, 5, 64), (96, 64), (96,)))
    assert torch.equal(cublas.tower_linear(x, weight, bias), F.linear(x, weight, bias))
    assert torch.equal(cublas.tower_linear(x, weight), F.linear(x, weight))
    for onto in (cublas.tower_linear_onto, cublas.linear_onto):
        assert onto(torch.zeros(2, 5, 96).bfloat16(), x, weight, bias) is None


def test_a_product_that_begins_with_a_residual_has_a_choice_of_its_own(path: Path):
    library = FakeLibrary()
    choices, adding = Choices(library, path), dataclasses.replace(PRODUCT, adds=True)
    ran(choices)
    library.fastest = OTHER
    assert ran(choices, adding) == [OTHER] and set(json.loads(path.read_text())["algorithms"]) == {
        str(PRODUCT),
        str(PRODUCT) + ", added",
    }


def test_a_linear_adds_by_its_product_or_leaves_it_to_the_norm():
    """Where somebody watches the product (GPTQ does), it stays one by itself."""
    linear = Linear(8, 4, bias=True, dtype=torch.float32, device="cpu")
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    residual, x = torch.randn(3, 4), torch.randn(3, 8)
    product = F.linear(x, linear.weight, linear.bias)
    seen: list[torch.Tensor] = []

    def both_ways() -> None:
        total, delta = add_product(linear, residual, x)
        torch.testing.assert_close(total if delta is None else total + delta, residual + product)

    both_ways()
    linear.multiply_onto = lambda r, x, w, b: seen.append(x) or r + F.linear(x, w, b)
    both_ways()
    assert len(seen) == 1
    handle = linear.register_forward_pre_hook(lambda *_: seen.append(x))
    both_ways()
    handle.remove()
    assert len(seen) == 2, "the hook saw it, not the joint product"
    linear.multiply_onto = lambda *_: None
    both_ways()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7, 729, 1461])
def test_products_are_as_near_to_the_truth_as_torchs(device, rows: int, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    cublas.choices_of.cache_clear()
    torch.manual_seed(rows)
    for width, depth in ((1152, 4304), (4304, 1152)):
        x, weight, bias = (torch.randn(*s, device=device) for s in ((rows, depth), (width, depth), (width,)))
        x, weight, bias = x.bfloat16(), (weight * depth**-0.5).bfloat16(), bias.bfloat16()
        exact = F.linear(x.double(), weight.double(), bias.double())
        for ours, truth in (
            (cublas.tower_linear, exact), (cublas.linear_gelu, F.gelu(exact, approximate="tanh"))
        ):  # fmt: skip
            torch.testing.assert_close(ours(x, weight, bias).double(), truth, atol=8e-3, rtol=8e-3)
        residual = torch.randn(rows, width, device=device).bfloat16()
        total = cublas.tower_linear_onto(residual, x, weight, bias)
        torch.testing.assert_close(total.double(), residual.double() + exact, atol=8e-3, rtol=8e-3)
    assert len(json.loads(choices_path(torch.cuda.get_device_name()).read_text())["algorithms"]) == 6


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [cublas.ONTO_ROWS, 1000])
def test_a_product_of_many_rows_may_begin_with_the_residual_itself(device, rows: int):
    torch.manual_seed(rows)
    x, weight, residual = (torch.randn(*s, device=device).bfloat16() for s in ((rows, 64), (96, 64), (rows, 96)))
    truth = residual.double() + F.linear(x.double(), weight.double())
    total = cublas.linear_onto(residual, x, weight, None)
    assert total.data_ptr() == residual.data_ptr(), "it was added in place"
    torch.testing.assert_close(total.double(), truth, atol=8e-3, rtol=8e-3)
    assert cublas.linear_onto(residual[:8], x[:8], weight, None) is None, "few rows: the norm adds"
    assert cublas.linear_onto(residual.float(), x, weight, None) is None, "a wider residual"


@pytest.mark.gpu
def test_a_captured_product_and_the_next_start_have_the_same_bits(device, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    x, weight, bias = (torch.randn(*s, device=device).bfloat16() for s in ((1458, 1152), (1152, 1152), (1152,)))
    outs = []
    for _ in range(2):
        cublas.choices_of.cache_clear()
        graph, out = capture(lambda: cublas.tower_linear(x, weight, bias), torch.cuda.graph_pool_handle())
        graph.replay()
        outs += [out.clone(), cublas.tower_linear(x, weight, bias)]
    assert all(torch.equal(out, outs[0]) for out in outs)
    cublas.choices_of.cache_clear()
