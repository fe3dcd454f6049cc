"""The bench that builds operators with torch, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from niffbench.case import Case
from niffbench.cost import memory as fake_memory
from niffbench.cost import witness
from niffbench.device import Device
from niffbench.measure import ceilings, numerics
from niffbench.measure.bench import Prediction, Subject
from niffbench.measure.subject import TorchSubject, build, noise
from niffbench.measure.tolerance import tolerance
from niffbench.operators.catalogue import catalogue
from niffbench.records import Ceilings, CostRecord, Numerics

HEAVY = 5e9
"""FLOPs from which a reference is computed on the GPU, in float64 too, rather than on the CPU."""


@dataclass(frozen=True)
class _Shared:
    """What the cases of an equivalence class and a problem share: weights, and the float64 reference."""

    state: Mapping[str, Tensor]
    reference: Tensor


class TorchBench:
    """Bench of a CPU or CUDA device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._place = torch.device(device.spec)
        self._shared: dict[str, _Shared] = {}
        self._states: dict[str, Mapping[str, Tensor]] = {}
        _wake(self._place)

    def predict(self, case: Case) -> Prediction:
        told = fake_memory.predict(catalogue()[case.operator], case)
        return Prediction(resident=told.resident, peak=told.peak)

    def ceilings(self, dtypes: frozenset[str]) -> Ceilings:
        return ceilings.measure(self.device, self._place, dtypes)

    def subject(self, case: Case) -> TorchSubject:
        """Build ``case``; the first of its class makes the weights, the others load them."""
        operator = catalogue()[case.operator]
        key = operator.equivalence(case)
        module = build(operator, case, self._states.get(key))
        self._states.setdefault(key, {name: value.clone() for name, value in module.state_dict().items()})
        return TorchSubject(case, module, self._input(case), self._place)

    def numerics(self, subject: Subject, output: object) -> Numerics:
        """``output`` is what the first call gave; the reference is computed once per class."""
        assert isinstance(subject, TorchSubject)
        assert isinstance(output, Tensor)
        allowed = tolerance(subject.case.problem.dtype, self.device.tf32)
        return numerics.compare(output, self._reference(subject.case), allowed)

    def _reference(self, case: Case) -> Tensor:
        """In float64 from the weights and the input as rounded to the case's dtype."""
        operator = catalogue()[case.operator]
        key = operator.equivalence(case)
        if key not in self._shared:
            dtype = getattr(torch, case.problem.dtype)
            heavy = self.device.kind == "cuda" and operator.cost(case).flops("forward") > HEAVY
            place = self._place if heavy else torch.device("cpu")
            state = {name: _rounded(value, dtype).to(place) for name, value in self._states[key].items()}
            x = numerics.images(_rounded(self._input(case), dtype)).to(place)
            with torch.no_grad(), place:
                reference = operator.reference(case, state, x)
            self._shared[key] = _Shared(self._states[key], reference)
        return self._shared[key].reference

    def cost(self, case: Case) -> CostRecord:
        return witness.witnesses(catalogue()[case.operator], case)

    def forget(self) -> None:
        self._shared.clear()
        self._states.clear()
        self.device.release()

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
