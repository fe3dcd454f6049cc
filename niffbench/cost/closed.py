"""Closed-form cost: the units, the primitives every operator's formula is made of, and their sums.

Unit: real FLOPs, nominal. What counts: transforms (:func:`niffbench.lengths.fft_flops`), convolutions and matrix
products (a multiply-add is 2, a complex one 8), products of two tensors element by element (1, complex × real 2,
complex 6) and the additions of a sum that ends a contraction (1 for each element that enters it, complex 2), so
a bias's gradient, which is the output's summed over batch and space, in whatever form it is summed.
What counts nothing, as in every FLOP counter: activations, normalisations, elementwise sums, scaling by a
constant, copies, an optimiser's update of the weights.

Of bytes only the floor has a closed form; what a form really moves is counted (:mod:`niffbench.cost.traffic`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from niffbench.case import Problem
from niffbench.lengths import fft_flops
from niffbench.results import StepCost

Direction = Literal["forward", "backward"]
Work = tuple[int, int]
"""Real FLOPs of a part of an operator: forward and backward."""
Parts = dict[str, Work]
"""The steps of an operator by name, in the order of the forward pass."""
NOTHING: Work = (0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a form: real FLOPs."""

    name: str
    direction: Direction
    flops: int


@dataclass(frozen=True, slots=True)
class Cost:
    """All of an operator's cost for one case, in the case's mode (backward steps only in ``training``).

    Attributes:
        steps: those that cost FLOPs.
        bytes_floor: each input and weight read once, each output written once.
        parameters: learnable scalars.
        transform_lengths: the FFT lengths per axis in use, so that a large prime factor can be stated beside
            them.
    """

    steps: tuple[Step, ...]
    bytes_floor: int
    parameters: int
    transform_lengths: tuple[int, ...] = ()

    def flops(self, direction: Direction | None = None) -> int:
        """Real FLOPs, of one direction or of both."""
        return sum(s.flops for s in self.steps if direction in (None, s.direction))


class Uncounted(Exception):
    """Nothing is known of a cost: there is no closed form, and the counters fail. The text says why."""


def layer_cost(problem: Problem, parts: Parts, parameters: int, transform_lengths: Sequence[int] = ()) -> Cost:
    """The cost of a layer that maps images to images: its parts in the problem's mode, and its floor."""
    return Cost(
        steps=steps(problem, parts),
        bytes_floor=floor_bytes(problem, parameters),
        parameters=parameters,
        transform_lengths=tuple(transform_lengths),
    )


def steps(problem: Problem, parts: Parts) -> tuple[Step, ...]:
    """The parts as steps: forward in order; in ``training`` then backward, the other way round."""
    forward = [Step(name, "forward", flops) for name, (flops, _) in parts.items() if flops]
    backward = [Step(name, "backward", flops) for name, (_, flops) in reversed(parts.items()) if flops]
    return tuple(forward + backward if problem.mode == "training" else forward)


def step_costs(cost: Cost, traffic: Mapping[tuple[str, Direction], int] | None) -> list[StepCost]:
    """Each step's FLOPs and the bytes that were counted of it, in the order in which the steps are taken.

    A step with bytes alone has no FLOPs; where nothing was counted (None) no step has bytes.
    """
    flops = {(step.name, step.direction): step.flops for step in cost.steps}
    order = sorted({**(traffic or {}), **flops}, key=lambda key: key[1] == "backward")
    return [
        StepCost(
            name=name,
            direction=direction,
            flops=flops.get((name, direction), 0),
            bytes=None if traffic is None else traffic.get((name, direction), 0),
        )
        for name, direction in order
    ]


def floor_bytes(problem: Problem, parameters: int) -> int:
    """Bytes that any implementation moves: each input and weight read once, each output written once.

    In training the gradient of the output is read too, and the gradients of input and weights are written.
    """
    pixels = problem.batch * problem.height * problem.width
    once = pixels * (problem.channels + problem.channels_out) + parameters
    return once * problem.element_bytes * (2 if problem.mode == "training" else 1)


def added(*works: Work) -> Work:
    """The sum of several parts."""
    return sum(forward for forward, _ in works), sum(backward for _, backward in works)


def half_plane(height: int, width: int) -> int:
    """Frequencies of the half plane that determines a real image's spectrum."""
    return height * (width // 2 + 1)


def complex_fft(points: int, planes: int) -> Work:
    """Complex FFTs of ``planes`` images, and of their gradients."""
    flops = fft_flops(points, planes)
    return flops, flops


def real_fft(points: int, planes: int) -> Work:
    """Real images to half planes; the gradient, as torch computes it, by a *complex* FFT of a padded plane."""
    return fft_flops(points, planes, real=True), fft_flops(points, planes)


def inverse_real_fft(points: int, planes: int) -> Work:
    """Half planes to real images; the gradient by a real FFT."""
    flops = fft_flops(points, planes, real=True)
    return flops, flops


def product(flops: int) -> Work:
    """A convolution or matrix product; backward is one of the same size for the gradient of each factor."""
    return flops, 2 * flops


def batch_sum(batch: int, elements: int) -> int:
    """The sum of ``batch`` gradients of ``elements`` complex numbers each; nothing for one."""
    return 2 * batch * elements if batch > 1 else 0


def spectral_product(batch: int, planes: int, points: int) -> Work:
    """The complex product of ``batch × planes`` spectra of ``points`` numbers with ``planes`` filters.

    Backward: two products, and the filter's gradient summed over the batch.
    """
    spectra = batch * planes * points
    return 6 * spectra, 12 * spectra + batch_sum(batch, planes * points)


def contraction(problem: Problem, points: int) -> Work:
    """Complex matrices over the channels, one for each of ``points`` frequencies: ``bihw,iohw->bohw``.

    Over a single channel there is nothing to contract: ``torch.einsum`` then multiplies element by element;
    backward makes two products as large as all that was multiplied, and sums what had been spread out.
    """
    batch, out = problem.batch, problem.channels_out
    products = batch * problem.channels * out * points
    if problem.channels > 1:
        return product(8 * products)
    return 6 * products, 12 * products + batch_sum(out, batch * points) + batch_sum(batch, out * points)
