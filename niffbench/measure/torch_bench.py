"""The bench that builds operators with torch, on a CPU or a GPU."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch
from torch import Tensor

from niffbench.case import Case
from niffbench.cost import memory as fake_memory
from niffbench.cost import witness
from niffbench.device import Device
from niffbench.measure import ceilings, numerics
from niffbench.measure.bench import Prediction, Subject
from niffbench.measure.shared import Store
from niffbench.measure.subject import TorchSubject, build, noise
from niffbench.measure.tolerance import tolerance
from niffbench.operators.base import Choice
from niffbench.operators.catalogue import catalogue
from niffbench.records import Ceilings, CostRecord, Numerics

HEAVY = 5e9
"""FLOPs from which a reference is computed on the GPU, in float64 too, rather than on the CPU."""


class TorchBench:
    """Bench of a CPU or CUDA device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._place = torch.device(device.spec)
        self._store = Store()
        _wake(self._place)

    def predict(self, case: Case) -> Prediction:
        told = fake_memory.predict(catalogue()[case.operator], case)
        return Prediction(resident=told.resident, peak=told.peak)

    def ceilings(self, dtypes: frozenset[str]) -> Ceilings:
        return ceilings.measure(self.device, self._place, dtypes)

    def subject(self, case: Case) -> TorchSubject:
        """Build ``case``; the first of its class makes the weights, the others load them."""
        operator = catalogue()[case.operator]
        equivalence = operator.equivalence(case)
        shared = self._store.find(case, equivalence)
        module = build(operator, case, None if shared is None else shared.weights)
        if shared is None:
            self._store.add(case, equivalence, module.state_dict())
        return TorchSubject(case, module, self._input(case), self._place)

    def numerics(self, subject: Subject, output: object) -> Numerics:
        """``output`` is what the first call gave; the reference is computed once per class and shape."""
        assert isinstance(subject, TorchSubject)
        assert isinstance(output, Tensor)
        case = subject.case
        equivalence = catalogue()[case.operator].equivalence(case)
        reference = self._store.reference(case, equivalence, lambda weights: self._reference(case, weights))
        growth = catalogue()[case.operator].error_growth(case)
        return numerics.compare(output, reference, growth * tolerance(case.problem.dtype, self.device.tf32))

    def _reference(self, case: Case, weights: Mapping[str, Tensor]) -> Tensor:
        """In float64 from the weights and the input as rounded to the case's dtype."""
        operator = catalogue()[case.operator]
        dtype = getattr(torch, case.problem.dtype)
        heavy = self.device.kind == "cuda" and operator.cost(case).flops("forward") > HEAVY
        place = self._place if heavy else torch.device("cpu")
        state = {name: _rounded(value, dtype).to(place) for name, value in weights.items()}
        x = _rounded(self._input(case), dtype).to(place)
        x = x if operator.mixes_images(case) else numerics.images(x)
        with torch.no_grad(), place:
            return operator.reference(case, state, x).cpu()

    def choice(self, subject: Subject) -> Choice | None:
        assert isinstance(subject, TorchSubject)
        return catalogue()[subject.case.operator].choice(subject.case, subject.module)

    def cost(self, case: Case, choice: Choice | None) -> CostRecord:
        return witness.witnesses(catalogue()[case.operator] if choice is None else choice.operator, case)

    def forget(self) -> None:
        """Drop what is old, and collect garbage; what lives on is not looked through again."""
        self._store.trim()
        self.device.release()
        gc.freeze()

    @staticmethod
    def _input(case: Case) -> Tensor:
        problem = case.problem
        shape = (problem.batch, problem.channels, problem.height, problem.width)
        return noise(f"input/{shape}", shape)


def _wake(place: torch.device) -> None:
    """Load the libraries and start the threads that all cases need, so that no ``first`` call pays for it."""
    x = torch.ones(1, 8, 16, 16, device=place)
    with torch.inference_mode():
        torch.nn.functional.conv2d(x, torch.ones(8, 8, 3, 3, device=place))
        torch.fft.irfft2(torch.fft.rfft2(x) * 2)
        torch.mm(x.view(32, 64), x.view(64, 32)).sum().item()


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).double() if value.is_floating_point() else value
