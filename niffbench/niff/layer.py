"""What the paper's layers have in common: a choice of form, one filter, checks, the dtype of the arithmetic."""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, Self, TypedDict

import torch
from torch import Tensor, nn

from niffbench.niff import auto, spectral
from niffbench.niff.autograd import (
    autocasts,
    compiling,
    exporting,
    transformed,
    unobserved,
    wants_gradient,
    without_autocast,
)
from niffbench.niff.cache import note_change
from niffbench.niff.catalogue import IN_C, Form, engines_of, form_of, form_with_engine, one_of
from niffbench.niff.filters import FilterGenerator
from niffbench.niff.grid import Made
from niffbench.niff.native import generated, kernel, triton_engine
from niffbench.niff.steps import step


class SpectralLayer(nn.Module):
    """A layer with several forms that share its weights.

    Arithmetic is done in float32, or float64 where the input or the weights are; float16 and bfloat16 input is
    cast up and the result cast back (half-precision FFTs exist on some devices and for powers of two only).
    Autocast is switched off inside. A single image, without a batch, is one of three dimensions, and images with
    channels last in memory give such.

    Any form is exported (``torch.export``, ONNX) by torch's own operations, which compute the same and load
    without this package; ``torch.jit.trace`` records what the form does. A form that keeps its filter notices that
    weights change by autograd's version counter, which a write through ``.data`` leaves as it is: then call
    ``generator.forget()``.
    """

    kind: ClassVar[str]
    channel_dimension = 1
    _how: Form

    def __init__(self, in_channels: int, out_channels: int, form: str, **undefined: object) -> None:
        super().__init__()
        if undefined:  # What a convolution has, mostly.
            raise ValueError(
                f"NIFF does not define {', '.join(undefined)}: its layers are circular, as large as the image, of "
                "stride 1, and without groups, dilation and bias"
            )
        if in_channels < 1 or out_channels < 1:
            raise ValueError(f"a layer needs at least one channel, got {in_channels} to {out_channels}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.form = form

    @property
    def form(self) -> str:
        """How the layer executes; assign another name of ``forms_of(layer.kind)`` to change it."""
        return self._how.name

    @form.setter
    def form(self, name: str) -> None:
        self._how = form_of(self.kind, name)
        note_change()

    def with_form(self, form: str) -> Self:
        """The same layer, sharing every parameter, executing as ``form``."""
        twin = copy.copy(self)
        for registry in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[registry] = self.__dict__[registry].copy()
        twin.form = form
        return twin

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            one: Tensor = self.forward(x[None])[0]
            return one
        self._check(x)
        if x.shape[0] == 0:  # No FFT takes nothing; weights get gradients of zero, as a convolution's do.
            none: Tensor = self.forward(torch.cat((x, x.new_zeros(1, *x.shape[1:]))))[:0]
            last = x.is_contiguous(memory_format=torch.channels_last)
            return none.contiguous(memory_format=torch.channels_last) if last else none
        result = self._compute(x)
        return result if self.channel_dimension == 3 else _as_given(x, result)

    def _compute(self, x: Tensor) -> Tensor:
        compute = torch.promote_types(torch.promote_types(x.dtype, self._weights_dtype()), torch.float32)
        if compute == x.dtype and not autocasts(x):
            return self._execute(x)
        with without_autocast(x):
            if self._takes(x, compute):
                return self._execute(x)
            with step("cast"):
                wide = x.to(compute)
            result = self._execute(wide)
            with step("cast"):
                return result.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, form={self.form!r}"

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(f"expected real images of 3 or 4 dimensions, got {x.dtype} of shape {tuple(x.shape)}")
        dimension = self.channel_dimension
        if x.shape[dimension] != self.in_channels:
            raise ValueError(
                f"expected {self.in_channels} channels in dimension {dimension}, got shape {tuple(x.shape)}"
            )
        if not x.numel() and x.shape[0]:
            raise ValueError(f"expected images of at least one pixel, got shape {tuple(x.shape)}")

    def _weights_dtype(self) -> torch.dtype:
        raise NotImplementedError

    def _takes(self, x: Tensor, compute: torch.dtype) -> bool:
        """Whether :meth:`_execute` takes such images as they are, to compute in that dtype."""
        return False

    def _execute(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def _as_given(x: Tensor, result: Tensor) -> Tensor:
    """``result``, channels last in memory where those of ``x`` are."""
    if not _is_channels_last(x) or _is_channels_last(result):
        return result
    with step("cast"):
        return result.contiguous(memory_format=torch.channels_last)


def _is_channels_last(x: Tensor) -> bool:
    """Whether channels lie together in memory, and other pixels do not."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


Limits = tuple[float, float, float, float]
"""Least and largest number of what enters a layer, then of what leaves it."""

UNLIMITED = (-math.inf, math.inf)


class Settings(TypedDict, total=False):
    """What a layer with a filter can be given beside its channels; see :class:`niffbench.niff.NiffDepthwise`."""

    mlp: str
    grid: str
    form: str
    device: torch.device | str | None
    dtype: torch.dtype | None


class FilteringLayer(SpectralLayer):
    """A layer with a generated frequency filter; ``default_mlp`` is the one that it has unless told otherwise."""

    default_mlp: ClassVar[str] = "small"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        mlp: str | None = None,
        grid: str = "paper",
        form: str = "rfft",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **undefined: object,
    ) -> None:
        super().__init__(in_channels, out_channels, form, **undefined)
        self._constants = auto.Constants()
        self._fixed: str | None = None
        mlp = self.default_mlp if mlp is None else mlp
        self.generator = FilterGenerator(self._planes(), mlp=mlp, grid=grid, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if unobserved(x) and self._constants.taken and (again := self._again(x)) is not None:
            return _as_given(x, self._finish(again))
        return super().forward(x)

    def with_form(self, form: str) -> Self:
        twin = super().with_form(form)
        twin._constants = auto.Constants()
        return twin

    @property
    def chooses(self) -> bool:
        """Whether the form leaves it to :mod:`niffbench.niff.auto` which engine convolves."""
        return self._how.engine == "auto"

    @property
    def may_be_in_c(self) -> bool:
        """Whether on a CPU the engine is, or may be chosen to be, the C kernel."""
        engine = self._fixed or self._how.engine
        return any(one in IN_C for one in (engines_of(self.kind) if engine == "auto" else (engine,)))

    @property
    def chosen(self) -> str | None:
        """The engine that the last call took by measurement, its own or one remembered; None before there was one.

        A compiled graph does not measure (see :meth:`when_compiled`), nor does a layer whose engine is fixed.
        """
        return self._constants.chosen if self.chooses and self._fixed is None else None

    def fix_engine(self, engine: str) -> None:
        """Take ``engine`` in every call that is not compiled, and measure nothing; of a form that chooses.

        Copies of the layer, and those :meth:`with_form` makes from now on, take it too.

        Raises:
            ValueError: where the form leaves nothing to choose, or for an engine that this kind of layer lacks.
        """
        if not self.chooses:
            raise ValueError(f"form {self.form!r} leaves nothing to choose")
        self._fixed = one_of(engine, engines_of(self.kind), f"engine of the {self.kind} layer")
        self._constants = auto.Constants()
        note_change()

    def when_compiled(self) -> str:
        """The engine that a form which chooses takes in a compiled graph."""
        engine: str = auto.when_compiled(self.generator.weight1.device.type)
        return engine

    def filter(self, height: int, width: int) -> Tensor:
        """W at every frequency in unshifted order; complex ``(*planes, height, width)``.

        The planes are ``(C,)`` for depthwise and split, ``(in, out)`` for full.
        """
        dtype = torch.promote_types(self.generator.dtype, torch.float32)
        with without_autocast(self.generator.sources()[0]):
            return self.generator.full_plane(height, width, dtype)

    def spatial_kernel(self, height: int, width: int) -> Tensor:
        """The equivalent circular convolution kernel ``Re ifft2(W)``, centred; real ``(*planes, height, width)``.

        The tap at ``[..., height // 2 + i, width // 2 + j]`` multiplies ``x[..., y - i, z - j]``.
        """
        kernel = torch.real(torch.fft.ifft2(self.filter(height, width)))
        return torch.roll(kernel, (height // 2, width // 2), dims=(-2, -1))

    def _planes(self) -> tuple[int, ...]:
        """The leading dimensions of the filter's planes."""
        return (self.in_channels,)

    def _weights_dtype(self) -> torch.dtype:
        return self.generator.dtype

    def _published_filter(self, x: Tensor) -> Tensor:
        with step("filter generation"):
            return self.generator.published(x.shape[-2], x.shape[-1], x.dtype)

    def _full_plane(self, x: Tensor) -> Tensor:
        with step("filter generation"):
            return self.generator.full_plane(x.shape[-2], x.shape[-1], x.dtype)

    def _half_plane(self, x: Tensor, *, scaled: bool = False) -> Tensor:
        """The filter's Hermitian half plane, kept between calls if the form says so."""
        plain = self.generator.scaled_half_plane if scaled else self.generator.half_plane

        def cloned(height: int, width: int, dtype: torch.dtype) -> Tensor:
            """As torch.compile wants what is kept: it cannot take a complex view of a real tensor as an input."""
            return plain(height, width, dtype).clone()

        return self._made("scaled" if scaled else "half", x, cloned if self._how.keeps_filter else plain)

    def _made(self, what: str, x: Tensor, generate: Callable[[int, int, torch.dtype], Made]) -> Made:
        """What ``generate`` makes of the weights for images like ``x``, kept between calls if the form says so."""
        key = self._key(what, x)
        with step("filter generation"):
            if not self._how.keeps_filter or exporting():
                return generate(*key[1:])
            return self.generator.cached(key, lambda: generate(*key[1:]))

    @staticmethod
    def _key(what: str, x: Tensor) -> tuple[str, int, int, torch.dtype]:
        """By which the generator keeps what it made for images like ``x``."""
        height, width = x.shape[-2:]
        return what, height, width, torch.promote_types(x.dtype, torch.float32)

    def _depthwise(self, x: Tensor) -> Tensor:
        """``x`` filtered channel by channel, by torch's plain real FFTs or by the engine that the form names."""
        if self._how.engine is None or exporting():
            return spectral.real_depthwise(x, self._half_plane(x))
        engine = self._fastest(x) if self.chooses else self._how.engine
        result = self._filtered(x, engine)
        if engine in IN_C and unobserved(x) and x.numel():
            self._prepare(x, engine)
        return result

    def _filtered(self, x: Tensor, engine: str) -> Tensor:
        """``x`` filtered by that engine, which takes what is kept of the filter, or makes it."""
        if engine == "features" and self._has_features(x) and not transformed():
            features, weight, bias = self._features(x)
            return generated.from_features(x, features, weight, bias, 1 / x[0, 0].numel())
        generates = engine == "features" or not self._has_filter()
        if generates and x.device.type in auto.GENERATING_ON.get(engine, ()):
            return auto.GENERATING[engine](x, *self._ingredients(x))
        half = self._half_plane(x, scaled=True)
        with step("convolution", whole=True) if self.chooses else nullcontext():
            return auto.ENGINES["native" if engine == "features" else engine](x, half, self._constants)

    def _features(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the C kernel makes the filter of, kept: hidden features, weights and bias of the last layer."""

        def make(height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
            grid, layers, scale = self.generator.half_ingredients(height, width, dtype)
            last = (layer.detach().contiguous() for layer in layers[-2:])
            return generated.features(grid, layers[:-2], scale), *last

        return self._made("features", x, make)

    def _has_filter(self) -> bool:
        """Whether the filter is at hand as soon as it was made once."""
        return self._how.keeps_filter and self.generator.keeps()

    def _has_features(self, x: Tensor) -> bool:
        """Whether what the C kernel makes the filter of is, for images that want no gradient."""
        return self._has_filter() and x.is_cpu and not wants_gradient(x)

    def _takes(self, x: Tensor, compute: torch.dtype) -> bool:
        """Half precision that the Triton kernels read and write themselves, if they are to be the engine."""
        if exporting() or compute != torch.float32 or not triton_engine.takes(x):
            return False
        if not self.chooses:
            return self._how.engine == "triton"
        return "triton" in self._engines(x) and self._fastest(x) == "triton"

    def _ingredients(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...], float]:
        return self.generator.half_ingredients(*self._key("", x)[1:])

    def _prepare(self, x: Tensor, engine: str) -> None:
        """Remember how to do again, without checks, what the C kernel has just done, if it takes such images."""
        dense, last = kernel.dense(x)
        if dense is not x or self.generator.derives:
            return
        if not self._has_filter():
            self._constants.take(self._like(x), generated.Prepared(x, *self._ingredients(x)))
        elif not wants_gradient(x):
            features = engine == "features"
            call = kernel.call_for(x, last, self._features(x)[1].shape[-1] if features else 0)
            self._constants.take(self._like(x), (call, self._key("features" if features else "scaled", x)))

    def _again(
        self, x: Tensor, shift: Tensor | None = None, limits: Limits | None = None, *, in_place: bool = False
    ) -> Tensor | None:
        """:meth:`_depthwise` of a call that nobody watches, like one that was prepared; None if there was none.

        What it makes anew of the weights it does with no regard to what is around it: None too, if there is that.
        """
        constants, images = self._constants, (x.shape, x.stride(), x.dtype)
        last, generation = constants.last, constants.generation
        if (
            generation is not None
            and images == generation.images
            and shift is None
            and limits is None
            and (weights := self._as_before(generation, x)) is not None
        ):
            if self.chooses:
                constants.chosen = "native"
            return generation.prepared.convolve(x, generation.grid, weights, generation.scale)
        if (
            last is None
            or images != last.images
            or not self.repeats(last, shift, limits)
            or wants_gradient(x)
            or last.by[1].learns()
        ):
            prepared = constants.taken.get(self._like(x))
            if isinstance(prepared, generated.Prepared):
                return self._generated(x, prepared) if shift is None and limits is None else None
            kept = None if prepared is None else self.generator.at_hand(prepared[1])
            if prepared is None or kept is None or (shift is not None and not shift.is_contiguous()):
                return None
            constants.last = last = self._repeat(x, *prepared, kept, shift, limits)
        if last.chosen is not None:
            constants.chosen = last.chosen
        return last.call.convolve(x, last.made_of, in_place=in_place)

    def _as_before(self, generation: auto.Generation, x: Tensor) -> tuple[Tensor, ...] | None:
        """Weights of which the filter for such images is made as it was then; else None."""
        by = self._by()
        generator = by[1]
        weights = generator.weights()
        same = (
            by == generation.by
            and weights[0].dtype == generation.grid.dtype
            and weights[0].device == generation.grid.device
            and (wants_gradient(x), generator.learns()) == generation.learns
        )
        return weights if same else None

    def _generated(self, x: Tensor, prepared: generated.Prepared) -> Tensor:
        """The convolution with a filter that is made anew; how is remembered for the next call."""
        grid, layers, scale = self._ingredients(x)
        if self.generator.dtype == grid.dtype:
            self._constants.generation = auto.Generation(
                (x.shape, x.stride(), x.dtype),
                self._by(),
                learns=(wants_gradient(x), self.generator.learns()),
                prepared=prepared,
                grid=grid,
                scale=scale,
            )
        if self.chooses:
            self._constants.chosen = "native"
        return prepared.convolve(x, grid, layers, scale)

    def _by(self) -> tuple[Form, FilterGenerator, int]:
        """As in :class:`auto.Earlier`."""
        generator: Any = self._modules["generator"]  # The attribute of that name takes a µs to find.
        return self._how, generator, torch.get_num_threads()

    @property
    def last(self) -> auto.Repeat | None:
        """The last call of the C kernel with a filter that is kept."""
        return self._constants.last

    def repeats(self, last: auto.Repeat, shift: Tensor | None, limits: Limits | None) -> bool:
        """Whether such a call, with these around it, is done again with the same, but for the images."""
        return (
            self._by() == last.by
            and last.by[1].at_hand(last.key) is last.kept
            and limits is last.limits
            and shift is last.shift
            and (shift is None or shift.data_ptr() == last.made_of.shift)
        )

    def _repeat(
        self,
        x: Tensor,
        call: kernel.Call,
        key: tuple[str, int, int, torch.dtype],
        kept: Any,
        shift: Tensor | None,
        limits: Limits | None,
    ) -> auto.Repeat:
        """What such a call of the C kernel is done again with, if all is as it is now."""
        what, height, width, _ = key
        if what == "features":
            features, weight, bias = kept
            made_of = generated.made_of(features, weight, bias, 1 / (height * width))
        else:
            made_of = kernel.Filter(kept.data_ptr())
        alive: list[object] = []
        if shift is not None:
            made_of.shift = shift.data_ptr()
            alive.append(shift.detach())  # Whose ``.data`` may become another.
        if limits is not None:
            in_c = kernel.limits_in_c(limits, torch.promote_types(x.dtype, torch.float32))
            made_of.limits = ctypes.addressof(in_c)
            alive.append(in_c)
        return auto.Repeat(
            (x.shape, x.stride(), x.dtype),
            self._by(),
            key=key,
            kept=kept,
            shift=shift,
            limits=limits,
            alive=alive,
            call=call,
            made_of=made_of,
            chosen=("features" if what == "features" else "native") if self.chooses else None,
        )

    def _like(self, x: Tensor) -> tuple[object, ...]:
        """What calls have in common of which one can do what was prepared for the other."""
        generator = self.generator
        weight, learns = generator.sources()[0], (wants_gradient(x), generator.learns())
        filters = weight.dtype, weight.device, generator.mlp, generator.grid, generator.planes
        return self._how.name, x.shape, x.stride(), x.dtype, filters, learns, torch.get_num_threads()

    def _finish(self, filtered: Tensor) -> Tensor:
        """What the layer makes of filtered images."""
        return filtered

    def _fastest(self, x: Tensor) -> str:
        """The engine that is fastest for the whole of such a call, what it makes anew of the weights included."""
        if compiling():
            return self.when_compiled()
        if self._fixed is not None:
            return self._fixed
        generator = self.generator
        what = (self.kind, self._how.keeps_filter, generator.mlp, generator.planes, generator.dtype)
        return auto.choose(
            x,
            lambda: (x, *generator.weights()),
            self._rivals,
            self._constants,
            otherwise=self._engines(x)[0],
            what=(*what, generator.learns()),
        )

    def _engines(self, x: Tensor) -> Sequence[str]:
        """What a form that chooses has to choose from, first what it takes where it cannot measure."""
        engines = auto.candidates(x)
        return [*engines, "features"] if "native" in engines and self._has_features(x) else engines

    def _rivals(self, tensors: Sequence[Tensor]) -> dict[str, Callable[[], Tensor]]:
        """Layers of other weights, one for each engine; filters that they keep go with them."""
        x, *weights = tensors
        rivals: dict[str, Callable[[], Tensor]] = {}
        for engine in self._engines(x):
            twin = self.with_form(form_with_engine(self.kind, self.form, engine))
            twin.generator = self.generator.with_weights(weights)
            rivals[engine] = partial(twin._compute, x)
        return rivals
