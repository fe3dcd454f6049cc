"""The three witnesses agree, over the whole catalogue, or the reason has a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from operator_cases import LAYERS, case_at, cases, values
from torch import Tensor, nn

from niffbench.case import Case, Mode, Problem
from niffbench.cost.call import fake
from niffbench.cost.closed import Cost, Step
from niffbench.cost.counters import count
from niffbench.cost.witness import Disagreement, witnesses
from niffbench.operators.catalogue import catalogue
from niffbench.operators.niff import Niff
from niffbench.results import CostRecord

PROBLEM = Problem(2, 8, 8, 12, 10)


def record_of(case: Case) -> CostRecord:
    return witnesses(catalogue()[case.operator], case)


@settings(max_examples=60)
@given(cases(LAYERS))
def test_witnesses_agree_to_the_last_flop(case: Case) -> None:
    record = record_of(case)
    assert (record.disagreement, record.notes) == (None, [])
    assert record.counted == record.closed == sum(step.flops for step in record.steps)
    assert record.fvcore == record.closed_forward
    if case.problem.mode != "training":
        assert record.closed == record.closed_forward


@pytest.mark.parametrize("name", LAYERS)
def test_every_option_of_every_operator_forward_and_backward(name: str) -> None:
    """A batch, primes, a half precision, compiled, and other channels going out where the operator allows them.

    Options change together, so that each of their values comes up.
    """
    operator, base = catalogue()[name], {"modes": 4} if name == "spectral" else {}
    problem = Problem(3, 8, 5, 13, 17, "bfloat16", "channels_last", "training")
    if operator.refusal(case_at(name, problem, 5, **base)):
        problem = replace(problem, channels_out=8)
    choices = {key: values(operator, key) for key in operator.options}
    for turn in range(max(map(len, choices.values()), default=1)):
        options = {key: of_key[turn % len(of_key)] for key, of_key in choices.items()}
        case = replace(case_at(name, problem, 5, **{**base, **options}), execution="compiled")
        assert operator.refusal(case) is None
        record = record_of(case)
        assert (record.disagreement, record.notes) == (None, []), case
        assert record.counted == record.closed > record.closed_forward == record.fvcore, case
        _check_bytes(record)


@pytest.mark.parametrize("name", LAYERS)
def test_every_operator_in_inference_at_an_ordinary_size(name: str) -> None:
    options = {"modes": 4} if name == "spectral" else {}
    record = record_of(case_at(name, PROBLEM, 5, **options))
    assert (record.disagreement, record.notes) == (None, [])
    assert record.counted == record.closed == record.fvcore == record.closed_forward > 0
    _check_bytes(record)


def _check_bytes(record: CostRecord) -> None:
    """Counted bytes are those of the steps, each of which is there once."""
    assert record.bytes_own == sum(step.bytes or 0 for step in record.steps) >= record.bytes_floor
    assert len({(step.name, step.direction) for step in record.steps}) == len(record.steps)


@pytest.mark.parametrize("channels_out", [1, 5])
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("form", ["fft", "rfft"])
def test_one_channel_is_stated_exactly(form: str, mode: Mode, channels_out: int) -> None:
    """With channels last ``torch.einsum`` multiplies and has nothing to add: one FLOP for each product."""
    problem = replace(PROBLEM, channels=1, channels_out=channels_out, mode=mode)
    record = record_of(case_at(f"niff-pointwise/{form}", problem, layout="nhwc"))
    assert record.disagreement is None
    [mixing] = [step.flops for step in record.steps if (step.name, step.direction) == ("mixing", "forward")]
    assert mixing == 2 * 2 * channels_out * 12 * (10 if form == "fft" else 6)


@dataclass(frozen=True)
class Misstated:
    """A convolution whose closed form is what it is told."""

    stated: int
    operation: str = "conv"

    def cost(self, case: Case) -> Cost:
        return Cost((Step("convolution", "forward", self.stated),), 0, 0)

    def build(self, case: Case) -> nn.Module:
        if self.operation.startswith("from"):
            return _Hidden(traced=self.operation == "from counter")
        channels = case.problem.channels
        return _Cumulative() if self.operation == "cumsum" else nn.Conv2d(channels, channels, 1, bias=False)


class _Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


def test_a_wrong_closed_form_is_found_out() -> None:
    true = 2 * 64 * 2 * 120
    case = Case("misstated", PROBLEM)
    assert witnesses(Misstated(true), case).disagreement is None
    reason = witnesses(Misstated(true + 1), case).disagreement
    assert reason is not None
    assert reason.startswith(Disagreement.UNEXPLAINED)
    assert f"{true + 1:,}" in reason
    assert f"{true:,}" in reason


def test_one_channel_excuses_nothing() -> None:
    case = Case("misstated", replace(PROBLEM, channels=1, channels_out=1))
    true = 2 * 2 * 120
    assert witnesses(Misstated(true), case).disagreement is None
    for stated in (true + 1, 2 * true):
        reason = witnesses(Misstated(stated), case).disagreement
        assert reason is not None
        assert reason.startswith(Disagreement.UNEXPLAINED)


def test_an_unpriced_operation_is_found_out() -> None:
    case = Case("misstated", PROBLEM)
    record = witnesses(Misstated(0, "cumsum"), case)
    assert record.disagreement is None
    assert [note.partition(":")[0] for note in record.notes] == [
        "FlopCounterMode counts as nothing, unpriced",
        "fvcore counts as nothing, unpriced",
    ]
    assert all("cumsum" in note for note in record.notes)
    reason = witnesses(Misstated(1, "cumsum"), case).disagreement
    assert reason is not None
    assert reason.startswith(Disagreement.UNPRICED)
    assert "aten.cumsum" in reason


@dataclass(frozen=True)
class Foreign:
    """Somebody's module, whose closed form nobody wrote."""

    module: Callable[[], nn.Module]

    def cost(self, case: Case) -> Cost:
        return Cost((), 0, 0)

    def build(self, case: Case) -> nn.Module:
        return self.module()

    __hash__ = object.__hash__


class _Untraceable(nn.Module):
    """Loops as often as a traced module cannot know, unless it is told."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("not while tracing\nand more of it")
        return x @ x.new_ones(10, 3)


class _DependsOnData(nn.Module):
    """Asks for a value, which a fake tensor has not."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0] if float(x.sum()) > 1 else x


def _attended() -> nn.Module:
    class Attended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            out: Tensor = self.inner(tokens, tokens, tokens)[0]
            return out

    return Attended()


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(
    "layer",
    [
        partial(nn.Conv2d, 8, 8, 3, padding="same"),
        partial(nn.Conv2d, 8, 8, 3, padding="valid", stride=[2, 1]),
        partial(nn.ConvTranspose2d, 8, 8, 3, stride=2, padding=1, output_padding=1),
        lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(8, 8, 5)),
        lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv3d(2, 2, 3)),
        _attended,
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)),
    ],
)
def test_both_counters_agree_on_layers_that_nobody_wrote_a_closed_form_for(
    layer: Callable[[], nn.Module], mode: Mode
) -> None:
    record = witnesses(Foreign(layer), Case("foreign", replace(PROBLEM, mode=mode)))
    assert record.counted is not None
    assert record.fvcore is not None
    assert record.counted > 0
    if mode == "inference":
        assert (record.counted, record.notes) == (record.fvcore, [])


def test_a_witness_that_fails_is_a_note() -> None:
    case = Case("foreign", PROBLEM)
    record = witnesses(Foreign(_Untraceable), case)
    assert (record.counted, record.fvcore) == (2 * 10 * 3 * 2 * 8 * 12, None)
    assert record.notes == ["fvcore fails: RuntimeError: not while tracing"]
    record = witnesses(Foreign(_DependsOnData), case)
    assert (record.counted, record.fvcore, record.stock_torch, record.stock_fvcore) == (None,) * 4
    [note] = record.notes
    assert note.startswith("cannot be run on fake tensors: DataDependentOutputException")
    assert record.disagreement is None


class _Hidden(nn.Module):
    """A convolution that only a trace sees, or everybody but a trace."""

    def __init__(self, traced: bool) -> None:
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1, bias=False)
        self.traced = traced

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x) if torch.jit.is_tracing() == self.traced else x
        return result


@pytest.mark.parametrize("hidden", ["from trace", "from counter"])
def test_any_single_witness_that_says_otherwise_is_heard(hidden: str) -> None:
    true = 2 * 64 * 2 * 120
    record = witnesses(Misstated(true, hidden), Case("misstated", PROBLEM))
    said = {"from trace": record.fvcore, "from counter": record.counted}
    assert said.pop(hidden) == 0
    assert list(said.values()) == [record.closed] == [true]
    assert record.disagreement is not None
    assert record.disagreement.startswith(Disagreement.UNEXPLAINED)


def test_stock_counters_see_nothing_of_a_cached_layer() -> None:
    record = record_of(case_at("niff-depthwise/cached", PROBLEM))
    assert record.stock_torch == record.stock_fvcore == 0
    assert "aten._fft_r2c" in record.missed
    assert "aten::fft_irfft2" in record.missed


def test_stock_counters_do_not_know_our_own_kernel() -> None:
    """Its formula is in torch's registry once the library is imported; as torch comes, it is not."""
    record = record_of(case_at("niff-depthwise/native-cached", PROBLEM))
    assert record.stock_torch == record.stock_fvcore == 0
    assert "niffbench.circular_convolution" in record.missed


def test_stock_torch_over_counts_depthwise_training() -> None:
    record = record_of(case_at("depthwise", replace(PROBLEM, mode="training"), 7))
    assert record.stock_torch is not None
    assert record.stock_torch > 2 * record.closed
    assert record.missed == []


def test_the_share_that_stock_counters_see() -> None:
    """At C = 64, 56² with the big MLP about 80 % of the whole, all filter generation; with the tiny one 22 %."""
    problem = Problem(1, 64, 64, 56, 56)
    big = record_of(case_at("niff-depthwise/published", problem, mlp="big"))
    assert big.stock_torch is not None
    assert big.stock_torch / big.closed == pytest.approx(0.80, abs=0.03)
    tiny = record_of(case_at("niff-depthwise/published", problem, mlp="tiny"))
    assert tiny.stock_torch is not None
    assert tiny.stock_torch / tiny.closed == pytest.approx(0.22, abs=0.03)


def test_largest_prime_factor_is_that_of_the_transforms() -> None:
    odd = replace(PROBLEM, height=127, width=14)
    assert record_of(case_at("niff-depthwise/rfft", odd)).largest_prime_factor == 127
    assert record_of(case_at("fft-depthwise-padded", odd, 7)).largest_prime_factor == 5  # 135 × 18
    assert record_of(case_at("depthwise", odd, 7)).largest_prime_factor is None


@settings(max_examples=15, deadline=None)
@given(cases(modes=("inference",)))
def test_counting_changes_nothing_that_could_be_timed(case: Case) -> None:
    """The witnesses build modules of their own: no mode, no grad mode and no default dtype is left behind."""
    record_of(case)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch._C._len_torch_dispatch_stack() == 0
    assert type(torch.zeros(1)) is Tensor


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("form", ["factored", "factored-cached"])
def test_a_batch_in_pieces_is_stated_exactly(form: str, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of two images and the rest: each reads features and weights again, FLOPs are the same."""
    name = f"niff-full/{form}"
    case = case_at(name, replace(PROBLEM, batch=5, channels=3, mode=mode))
    whole = catalogue()[name].cost(case)
    with fake(catalogue()[name], case) as call:
        moved = sum(count(call).traffic.values())
    monkeypatch.setattr("niffbench.niff.catalogue.LARGEST_PIECE", 2 * 16 * 3 * 12 * 6 * 8)
    record = record_of(case)
    assert record.disagreement is None
    assert record.counted == record.closed == whole.flops()
    assert record.bytes_own is not None
    assert record.bytes_own > moved


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", ["niff-depthwise/auto", "niff-depthwise/auto-cached", "niff-split/auto-cached"])
def test_what_is_chosen_is_what_is_counted(name: str, mode: Mode) -> None:
    """The closed form of each choice holds to the counters, under auto's own steps; dft costs more than an FFT."""
    case = case_at(name, replace(PROBLEM, mode=mode))
    operator = catalogue()[name]
    assert isinstance(operator, Niff)
    engines = ["fused", "dft", "native"] + ["features"] * (name.endswith("cached") and mode == "inference")
    records = {engine: witnesses(replace(operator, engine=engine), case) for engine in engines}
    for record in records.values():
        assert record.disagreement is None
        assert record.counted == record.closed
        assert [step.name for step in record.steps] == [step.name for step in record_of(case).steps]
    assert records["fused"].closed == record_of(case).closed, "what is said while nothing is chosen"
    assert records["dft"].closed > records["native"].closed


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", ["niff-full/auto", "niff-full/auto-cached"])
def test_what_a_full_layer_chooses_is_what_is_counted(name: str, mode: Mode) -> None:
    case = case_at(name, replace(PROBLEM, mode=mode))
    operator = catalogue()[name]
    assert isinstance(operator, Niff)
    records = {engine: witnesses(replace(operator, engine=engine), case) for engine in ("rfft", "factored")}
    for record in records.values():
        assert record.disagreement is None
        assert record.counted == record.closed
        assert [step.name for step in record.steps] == [step.name for step in record_of(case).steps]
    assert records["rfft"].closed == record_of(case).closed, "what is said while nothing is chosen"
    assert records["factored"].closed != records["rfft"].closed
