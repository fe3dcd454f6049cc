"""The evaluator that builds operators with torch, on a CPU or a GPU.

What traces and counts is loaded by who asks for it: later rounds do neither.
"""

from __future__ import annotations

import functools
import gc
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from niffbench.case import Case
from niffbench.cost.call import cast, cast_dtype, load
from niffbench.cost.closed import Cost, step_costs
from niffbench.device import Device
from niffbench.device.settings import ProcessState
from niffbench.niff import auto, native
from niffbench.niff.native import build as c_kernel
from niffbench.niff.native import cuda, triton_engine
from niffbench.operators.base import Choice, Operator
from niffbench.operators.catalogue import catalogue
from niffbench.protocol import Predicted
from niffbench.results import Ceilings, CostRecord, GradientError, Map, Numerics
from niffbench.worker import ceilings, numerics
from niffbench.worker.evaluator import Workload
from niffbench.worker.failures import Wrong, explain
from niffbench.worker.remembered import file_for, remembered
from niffbench.worker.shared import Made, Store
from niffbench.worker.tolerance import EXACT, HOPELESS, is_wrong, tolerance, tolerance_of_gradients
from niffbench.worker.workload import TorchWorkload, build, input_of, output_gradient

HEAVY = 5e9
"""FLOPs from which a reference is computed on the GPU, in float64 too, rather than on the CPU."""


MOST_ON_HOST, MOST_ON_ACCELERATOR = 2e11, 2e12
"""FLOPs of the closed form, for the images compared, up to which gradients are computed in float64 there.

Two CPU cores take 20 to 60 s for as many, of a reference once per class, shape and round. Where units switch the
operator is run in float64 besides, in every case, and both together stay below: layers do by far, and so does a
training step of ResNet-18 on eight images of 224². Beyond it, as for networks at batch 32, the record says that
gradients were left out.
"""

_PRODUCTS = re.compile(r"mm$|convolution|attention")
"""In the names of torch's operations: what TF32 rounds."""

T = TypeVar("T")


class TorchEvaluator:
    """Evaluator of a CPU or CUDA device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._place = torch.device(device.place)
        self._store = Store()
        self._process = ProcessState.here()
        self._warnings = tuple(warnings.filters)
        auto.forget(alone=True)  # what it chooses is part of what is measured
        triton_engine.stand_in(False)
        _wake(self._place)
        if device.capabilities.host:
            c_kernel.unavailable()  # which loads it
        gc.freeze()  # no collection looks through torch itself

    def _restore(self) -> None:
        """Undo whatever cases before have left in the process."""
        self._process.restore()
        warnings.filters[:] = self._warnings  # type: ignore[index]

    def predict(self, case: Case, choice: Choice | None = None) -> Predicted:
        self._restore()
        operator = catalogue()[case.operator] if choice is None else choice.operator

        def traced() -> Predicted:
            from niffbench.cost import memory

            call = memory.predict(operator, case)
            cost = _cost_of(operator, case)
            steps = None if cost is None else step_costs(cost, call.traffic)
            return Predicted(case=case.id, resident=call.resident, peak=call.peak, steps=steps)

        return remembered(Predicted, operator, case, traced)

    def ceilings(self, dtypes: frozenset[str], maps: Sequence[Map] = ()) -> Ceilings:
        self._restore()
        return ceilings.measure(self.device, self._place, dtypes, maps)

    def touch(self, case: Case) -> None:
        self._restore()
        workload = TorchWorkload(case, build(catalogue()[case.operator], case, None), input_of(case), self._place)
        self.device.timed(workload)
        workload.reset()

    def workload(self, case: Case) -> TorchWorkload:
        """Build ``case``; the first of its class makes the weights, the others load them.

        Its first call then tunes and plans for itself, whatever cases were called before it.
        """
        auto.forget(alone=True)
        self._restore()
        self.device.forget_plans()
        operator = catalogue()[case.operator]
        equivalence = operator.equivalence(case)
        shared = self._store.find(case, equivalence)
        module = build(operator, case, None if shared is None else shared.weights)
        if shared is None:
            self._store.add(case, equivalence, module.state_dict())
        if case.problem.mode == "training":
            _wake_gradients(self._place)
        operator.output_shape(case)  # what gives no tensor says so before anything else
        arithmetic = partial(self.device.arithmetic, case.problem.tf32)
        with arithmetic():  # where there is none such, say so before anything runs
            if case.problem.dtype == "float32" and self.device.tf32 and not case.problem.tf32:
                raise NotImplementedError("float32 is not implemented: NVIDIA_TF32_OVERRIDE=1 makes it TF32")
        if case.problem.dtype == "float64" and self.device.capabilities.host and _may_be_in_c(module):
            with suppress(c_kernel.Unavailable):
                c_kernel.load("double")  # no first call is to compile it
        return TorchWorkload(case, module, input_of(case), self._place, arithmetic)

    def numerics(self, workload: Workload, output: object) -> Numerics:
        """``output`` is what the first call gave, and in training the workload still holds the gradients of it.

        References are computed once per class and shape. Afterwards the workload is ready to be timed.

        Raises:
            Wrong: for an operator that changes its input or the process, or gives another shape than before.
            NotImplementedError: for one that is beyond its tolerance because it draws at random.
        """
        assert isinstance(workload, TorchWorkload)
        assert isinstance(output, Tensor)
        case = workload.case
        operator = catalogue()[case.operator]
        if changed := self._process.changed():
            self._restore()
            raise Wrong(f"it changes {changed}, of all that is measured beside it")
        if not workload.is_untouched:
            raise Wrong("it changes its input in place")
        if tuple(output.shape) != (shape := operator.output_shape(case)):
            raise Wrong(f"it gives {tuple(output.shape)} where it gave {shape} before")
        equivalence = operator.equivalence(case)
        allowed = operator.error_growth(case) * tolerance(case.problem.dtype, self._rounds_products(workload))
        gradients = _Gradients()
        if case.problem.mode == "training":
            gradients = self._gradients(workload, equivalence, allowed)
        workload.checked()
        reference = self._store.reference(case, equivalence, lambda weights: self._reference(case, weights))
        errors = replace(
            numerics.compare(output, reference, allowed),
            gradient=gradients.worst,
            exact_gradient=gradients.exact,
            gradients_left_out=gradients.left_out,
        )
        if is_wrong(errors) and self._draws(workload, allowed):
            mode = "training" if case.problem.mode == "training" else "evaluation"
            raise NotImplementedError(f"it draws at random in {mode}, so that there is nothing to compare it with")
        return errors

    def _draws(self, workload: TorchWorkload, allowed: float) -> bool:
        """Whether what it gives is the same with the same seed alone."""
        outputs = []
        with torch.random.fork_rng([] if self.device.capabilities.host else [self._place]), workload.scope():
            for seed in (0, 0, 1):
                torch.manual_seed(seed)
                outputs.append(workload.call().detach().cpu())  # a device may have no room for them
        workload.reset()
        first = outputs[0].double()
        again, other = (is_wrong(numerics.compare(output, first, allowed)) for output in outputs[1:])
        return other and not again

    def _rounds_products(self, workload: TorchWorkload) -> bool:
        """Whether TF32 was on and there was something for it to round: convolutions or matrix products."""
        with workload.scope():
            if not self.device.tf32:
                return False
        choice = self.choice(workload)
        operator = catalogue()[workload.case.operator] if choice is None else choice.operator
        from niffbench.cost import witness

        try:
            return any(map(_PRODUCTS.search, witness.operations(operator, workload.case)))
        except Exception as error:  # what no counter can follow may well make products
            explain(error)
            return True

    def _gradients(self, workload: TorchWorkload, equivalence: str, allowed: float) -> _Gradients:
        """Compare those that the first call left; where units switch those of the operator in float64, too."""
        case = workload.case
        operator, problem = catalogue()[case.operator], case.problem
        images = problem.batch if operator.mixes_images(case) else min(problem.batch, numerics.CHECKED)
        switches = operator.switches(case)
        bound = tolerance_of_gradients(allowed, problem, images=problem.batch, switches=switches)
        hopeless = f"rounding to {problem.dtype} alone may move them by {bound:.0%}" if bound >= HOPELESS else None
        work = self._flops(case) * images / problem.batch
        on_host = self.device.capabilities.host or self._where(case) != self._place
        most = MOST_ON_HOST if on_host else MOST_ON_ACCELERATOR
        itself = None  # why the operator is not run in float64, though units switch
        if switches and "float64" not in operator.dtypes:
            itself = "the operator itself does not run in float64"
        elif switches and 2 * work > most:
            itself = f"with the operator itself float64 would take {2 * work:.1e} FLOPs, over {most:.0e}"
        if hopeless and (itself or not switches):
            return _Gradients(left_out=_together(hopeless, itself))
        if work > most:
            return _Gradients(left_out=f"float64 would take {work:.1e} FLOPs for them, over {most:.0e}")
        gradients = workload.gradients()
        made = _if_it_fits(
            lambda: self._store.gradients(
                case, equivalence, lambda weights: self._reference_gradients(case, weights, gradients.keys())
            )
        )
        if made is None:
            return _Gradients(left_out="no memory for them in float64")
        _, truth = made
        worst = None if hopeless else numerics.compare_gradients(gradients, truth, bound, switches=switches)
        exact = None
        if switches and itself is None:
            exact = _if_it_fits(lambda: self._exact_gradient(workload, equivalence, truth))
            itself = "no memory for the operator itself in float64" if exact is None else None
        return _Gradients(worst, exact, _together(hopeless, itself))

    def _exact_gradient(
        self, workload: TorchWorkload, equivalence: str, truth: Mapping[str, Tensor]
    ) -> GradientError:
        """The worst of the operator itself, or of what it chose to be, run eagerly in float64 where it was run."""
        case, choice = workload.case, self.choice(workload)
        operator = catalogue()[case.operator] if choice is None else choice.operator
        shared = self._store.find(case, equivalence)
        assert shared is not None
        state, _ = self._exact(case, shared.weights)
        twin = replace(case, execution="eager", problem=replace(case.problem, dtype="float64"))
        module = cast(build(operator, twin, None), "float64")
        load(module, state)
        exact = TorchWorkload(twin, module, _rounded(input_of(case), workload.x.dtype), self._place)
        assert exact.gradient is not None
        exact.gradient.copy_(_rounded(exact.gradient, workload.x.dtype))
        with exact.scope():
            exact.call()
        return numerics.compare_gradients(exact.gradients(), truth, EXACT)

    def _reference(self, case: Case, weights: Mapping[str, Tensor]) -> Tensor:
        """In float64 from the weights and the input as rounded to the case's dtype."""
        state, x = self._exact(case, weights)
        with torch.no_grad(), self._where(case):
            return catalogue()[case.operator].reference(case, state, x).cpu()

    def _reference_gradients(self, case: Case, weights: Mapping[str, Tensor], names: Iterable[str]) -> Made:
        """The reference, and by autograd through it the gradients of the input and of the weights in ``names``."""
        state, x = self._exact(case, weights)
        leaves = {name: x if name == numerics.INPUT else state[name] for name in names}
        for leaf in leaves.values():
            leaf.requires_grad_()
        gradient = self._compared(case, output_gradient(case))
        copied = not catalogue()[case.operator].mixes_images(case)
        often = numerics.counts(case.problem.batch).to(gradient).reshape(-1, *[1] * (gradient.dim() - 1))
        with torch.enable_grad(), self._where(case):
            output = catalogue()[case.operator].reference(case, state, x)
            given = gradient * often if copied else gradient
            made = torch.autograd.grad(output, list(leaves.values()), given, materialize_grads=True)
        gradients = {name: value.cpu() for name, value in zip(leaves, made, strict=True)}
        if copied:  # an image's own gradient is that of one copy
            gradients[numerics.INPUT] /= numerics.counts(case.problem.batch)
        return output.detach().cpu(), gradients

    def _exact(self, case: Case, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """What a reference is computed from: the state, and the input of the compared images."""
        dtype, place = getattr(torch, case.problem.dtype), self._where(case)
        state = {name: _rounded(value, dtype).to(place) for name, value in weights.items()}
        return state, self._compared(case, input_of(case))

    def _compared(self, case: Case, batch: Tensor) -> Tensor:
        """Of a batch as made up, the compared images as rounded to the case's dtype."""
        mixing = catalogue()[case.operator].mixes_images(case)
        images = batch if mixing else numerics.images(batch)
        return _rounded(images, getattr(torch, case.problem.dtype)).to(self._where(case))

    def _where(self, case: Case) -> torch.device:
        """Where the case's references are computed."""
        accelerated = not self.device.capabilities.host
        heavy = accelerated and self._flops(case) > HEAVY
        return self._place if heavy else torch.device("cpu")

    @staticmethod
    def _flops(case: Case) -> int:
        """What is known of them; 0 where nothing is."""
        cost = _cost_of(catalogue()[case.operator], case)
        return 0 if cost is None else cost.flops()

    def compiled_so_far(self) -> int:
        return cuda.compiled_so_far() + triton_engine.compiled_so_far()

    def gone_without(self) -> list[str]:
        kind = self._place.type
        why = native.unavailable(kind) if kind in native.LANGUAGES else None
        missing = [] if why is None else [f"its {native.LANGUAGES[kind]} kernel, mostly the fastest: {why}"]
        return [f"auto went without {what}" for what in (*missing, *triton_engine.failures())]

    def choice(self, workload: Workload) -> Choice | None:
        assert isinstance(workload, TorchWorkload)
        return catalogue()[workload.case.operator].choice(workload.case, workload.module)

    def cost(self, case: Case, choice: Choice | None) -> CostRecord:
        operator = catalogue()[case.operator] if choice is None else choice.operator

        def counted() -> CostRecord:
            from niffbench.cost import witness

            return witness.witnesses(operator, case)

        record = remembered(CostRecord, operator, case, counted)
        return replace(record, executed=operator.executed(case)) if self.device.capabilities.host else record

    def count_ahead(self, case: Case) -> None:
        operator = catalogue()[case.operator]
        for one in operator.likely(case):
            if file_for(one, case) is None:
                continue
            if one is operator:
                self.cost(case, None)
            elif self.device.capabilities.host and c_kernel.unavailable() is None:
                self.predict(case, Choice((), one))
                self.cost(case, Choice((), one))

    def judge_by(self, clock: auto.Clock) -> None:
        auto.judge_by(clock)

    def forget(self) -> None:
        """Drop what is old, and collect garbage; what lives on is not looked through again."""
        self._store.trim()
        self.device.release()
        gc.freeze()


@dataclass(frozen=True)
class _Gradients:
    """What was found out about a case's gradients; see :class:`~niffbench.results.Numerics`."""

    worst: GradientError | None = None
    exact: GradientError | None = None
    left_out: str | None = None


def _cost_of(operator: Operator, case: Case) -> Cost | None:
    """The closed form, or else what was counted; None where that fails too."""
    stated = operator.cost(case)
    if stated is not None:
        return stated
    from niffbench.cost import witness

    return witness.counted_cost(operator, case)


def _may_be_in_c(module: torch.nn.Module) -> bool:
    """Whether a layer in it is, or may choose to be, the C kernel."""
    from niffbench.niff.layer import FilteringLayer

    return any(isinstance(one, FilteringLayer) and one.may_be_in_c for one in module.modules())


def _together(*reasons: str | None) -> str | None:
    """The reasons there are, in one line; None if there is none."""
    return "; ".join(reason for reason in reasons if reason) or None


def _if_it_fits(make: Callable[[], T]) -> T | None:
    """What ``make`` gives, or None if memory runs out: no fault of the case, that has run."""
    try:
        return make()
    except Exception as error:
        if explain(error).status == "oom":
            return None
        raise


def _wake(place: torch.device) -> None:
    """Load the libraries and start the threads that all cases need, so that no ``first`` call pays for it."""
    x = torch.ones(1, 8, 16, 16, device=place)
    with torch.inference_mode():
        torch.nn.functional.conv2d(x, torch.ones(8, 8, 3, 3, device=place))
        torch.fft.irfft2(torch.fft.rfft2(x) * 2)
        torch.mm(x.view(32, 64), x.view(64, 32)).sum().item()


@functools.cache
def _wake_gradients(place: torch.device) -> None:
    """Load what any backward pass needs, once a process, so that no ``first`` call pays for it either."""
    x, weight = (torch.ones(8, 8, 8, 8, device=place, requires_grad=True) for _ in range(2))
    y = torch.nn.functional.conv2d(x, weight)
    y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In float64 what is left of a value in ``dtype``, of a complex one in its precision; integers as they are."""
    there = cast_dtype(value, str(dtype).removeprefix("torch."))
    return value.to(there).to(cast_dtype(value, "float64"))
