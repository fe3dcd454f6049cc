"""What exists in this library, by name, readable without torch: MLPs, grids, forms of each layer, networks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from niffbench.errors import did_you_mean

HIDDEN_WIDTHS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"tiny": (8,), "small": (8, 4), "big": (16, 128, 32)}
)
"""Hidden widths of each filter MLP; it maps two coordinates to one value per filter plane."""

GRIDS = ("paper", "centred")
"""Coordinate grids: the published one (on odd sides zero frequency has coordinate -0.5), and one where it is 0."""

LAYOUTS = ("nchw", "nhwc")
"""Where a pointwise layer finds its channels."""

KINDS = ("depthwise", "full", "pointwise", "split")
"""The layers of the paper."""

LARGEST_PIECE = 2**24
"""Bytes of spectra times features that a factored layer makes at once, unless a single image has more: about a
cache's size."""

ANY_DEVICE = ("cpu", "cuda")

IN_C = ("native", "features")
"""Engines that on a CPU are the C kernel: with a filter that it makes, or is given, and of what is kept."""


@dataclass(frozen=True)
class Form:
    """One way of executing a layer with the same weights.

    ``devices`` are the device types it runs on; ``keeps_filter`` says whether, outside training, the filter, or
    what it is made of, is kept between calls instead of being generated in each; ``engine`` names what convolves,
    where ``auto`` has it to choose from (``fused``, ``dft``, ``native``, ``features``, ``triton``; of full layers
    ``rfft``, ``factored``), or is ``auto``.
    """

    name: str
    description: str
    devices: tuple[str, ...] = ANY_DEVICE
    keeps_filter: bool = False
    engine: str | None = None


_PUBLISHED = Form("published", "the original algorithm: complex FFTs, eight roll passes, a new filter every call")
_FFT = Form("fft", "complex FFTs with the filter in unshifted order, so without any shift")
_RFFT = Form("rfft", "real FFTs and the filter's Hermitian half plane")
_CACHED = Form("cached", "rfft, the filter kept until weights, size, dtype or device change", keeps_filter=True)

_CACHED_FILTER = "the filter kept"
_CACHED_EITHER = "auto, the filter kept or, as features-cached, the features"
_THEN_MIXED = "then an ordinary 1×1 convolution"
_FUSED = "real FFTs in place, 1/HW in the filter, a backward of real FFTs only, a generation of few operations"
_DFT = "matrix products instead of FFTs, for small maps"
_NATIVE = "one kernel, in C or in CUDA, compiled on first use: an image is read and written once"
_FEATURES = "native, its filter made in every call of the MLPs' hidden features, which are kept: far fewer numbers"
_TRITON = "one kernel in Triton that makes the filter too, in half precision as well; sides above 64 as fused"
_AUTO = "the fastest of fused, dft, native and, on GPUs, triton, measured at the first call of a kind"
_ENGINES = (
    Form("fused", _FUSED, engine="fused"),
    Form("fused-cached", f"fused, {_CACHED_FILTER}", engine="fused", keeps_filter=True),
    Form("dft", _DFT, engine="dft"),
    Form("dft-cached", f"dft, {_CACHED_FILTER}", engine="dft", keeps_filter=True),
    Form("native", _NATIVE, engine="native"),
    Form("native-cached", f"native, {_CACHED_FILTER}", engine="native", keeps_filter=True),
    Form("features-cached", _FEATURES, devices=("cpu",), engine="features", keeps_filter=True),
    Form("triton", _TRITON, devices=("cuda",), engine="triton"),
    Form("triton-cached", f"triton, {_CACHED_FILTER}", devices=("cuda",), engine="triton", keeps_filter=True),
    Form("auto", _AUTO, engine="auto"),
    Form("auto-cached", _CACHED_EITHER, engine="auto", keeps_filter=True),
)

_FULL_ENGINES = (
    replace(_RFFT, engine="rfft"),
    replace(_CACHED, engine="rfft"),
    Form(
        "factored",
        "real FFTs; no filter: its MLP's last layer is applied to the spectrum times the hidden features",
        engine="factored",
    ),
    Form(
        "factored-cached",
        "factored, features and matrix kept",
        engine="factored",
        keeps_filter=True,
    ),
    Form("auto", "the faster of rfft and factored, measured at the first call of a kind", engine="auto"),
    Form("auto-cached", "auto, between cached and factored-cached", engine="auto", keeps_filter=True),
)

FORMS: Mapping[str, tuple[Form, ...]] = MappingProxyType(
    {
        "depthwise": (_PUBLISHED, _FFT, _RFFT, _CACHED, *_ENGINES),
        "full": (_PUBLISHED, _FFT, *_FULL_ENGINES),
        "pointwise": (
            Form("published", "the original algorithm: complex FFTs around a linear map, channels permuted"),
            Form("fft", "complex FFTs, channels left where they are"),
            Form("rfft", "real FFTs, channels left where they are"),
            Form("elided", "an ordinary 1×1 convolution: the FFT pair is gone"),
        ),
        "split": (
            _PUBLISHED,
            _FFT,
            _RFFT,
            _CACHED,
            Form("elided", f"the depthwise layer as rfft, {_THEN_MIXED}"),
            *(
                replace(form, description=f"the depthwise layer as {form.name}, {_THEN_MIXED}")
                for form in _ENGINES
            ),
        ),
    }
)
"""The forms of each kind of layer, the published one first."""


EXECUTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        name: MappingProxyType(dict(zip(KINDS, forms, strict=True)))
        for name, forms in {
            "published": ("published",) * 4,
            "fft": ("fft",) * 4,
            "rfft": ("rfft",) * 4,
            "elided": ("rfft", "rfft", "elided", "elided"),
            "cached": ("cached", "cached", "elided", "cached"),
            "auto": ("auto", "auto", "elided", "auto"),
            "auto-cached": ("auto-cached", "auto-cached", "elided", "auto-cached"),
        }.items()
    }
)
"""How a whole network executes: the form of each kind of layer, by a name for the set."""


REPLACEABLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "conv3x3": ("split", "full", "keep"),
        "conv1x1": ("pointwise", "keep"),
        "depthwise": ("depthwise", "keep"),
    }
)
"""The layers of a network by what they may become: dense k×k, 1×1 and depthwise convolutions of stride 1."""


@dataclass(frozen=True)
class Network:
    """A network: torchvision's ``base`` and what became of it.

    ``variant`` is ``original``, ``full``, ``split`` or ``niff`` (where there is but one), or ``spatial``: the
    baseline whose replaced k×k convolutions have kernel size ``kernel``, a number or ``map`` for the feature
    map's size.
    """

    name: str
    base: str
    variant: str
    kernel: int | str | None = None


def _networks() -> dict[str, Network]:
    variants = {
        **{f"resnet{depth}": ("full", "split") for depth in (18, 34, 50, 101, 152)},
        **{f"densenet{depth}": ("full", "split") for depth in (121, 169, 201)},
        "mobilenet_v2": ("niff",),
        **{f"convnext_{size}": ("niff",) for size in ("tiny", "small", "base", "large")},
    }
    networks = []
    for base, converted in variants.items():
        networks.append(Network(base, base, "original"))
        networks += [Network(f"{base}-{variant}", base, variant) for variant in converted]
        networks += [Network(f"{base}-k{size}", base, "spatial", size) for size in (7, 9, 15, 31, "map")]
    return {network.name: network for network in networks}


NETWORKS: Mapping[str, Network] = MappingProxyType(_networks())
"""The paper's networks and the baselines beside them, by name."""


def execution_of(name: str) -> Mapping[str, str]:
    """The form of each kind of layer in one execution of :data:`EXECUTIONS`.

    Raises:
        ValueError: if there is no such execution.
    """
    return EXECUTIONS[one_of(name, EXECUTIONS, "execution")]


def forms_of(kind: str) -> tuple[str, ...]:
    """Names of the forms of one kind of layer, ``published`` first; those of Triton only where it runs.

    Raises:
        ValueError: if ``kind`` is not one of :data:`KINDS`.
    """
    forms = FORMS[one_of(kind, FORMS, "kind of layer")]
    return tuple(form.name for form in forms if form.engine != "triton" or _runs_triton())


def _runs_triton() -> bool:
    """Whether there is Triton, and a GPU of NVIDIA's or AMD's or its interpreter; asks no torch."""
    if find_spec("triton") is None:
        return False
    card = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    return card or os.environ.get("TRITON_INTERPRET") == "1"


def form_of(kind: str, name: str) -> Form:
    """One form of one kind of layer: what it does, where it runs, whether it keeps its filter.

    Raises:
        ValueError: if there is no such kind or form.
    """
    forms = {form.name: form for form in FORMS[one_of(kind, FORMS, "kind of layer")]}
    return forms[one_of(name, forms, f"form of the {kind} layer")]


def engines_of(kind: str, keeps_filter: bool | None = None) -> tuple[str, ...]:
    """What the forms ``auto`` and ``auto-cached`` of one kind of layer have to choose from.

    Args:
        keeps_filter: whether the form does that chooses; by default either.
    """
    forms = (form for form in FORMS[kind] if keeps_filter in (None, form.keeps_filter))
    return tuple(dict.fromkeys(form.engine for form in forms if form.engine is not None and form.engine != "auto"))


def form_with_engine(kind: str, name: str, engine: str) -> str:
    """The form that always does what the form ``name`` (an ``auto``) does once it has chosen ``engine``."""
    keeps = form_of(kind, name).keeps_filter
    return next(form.name for form in FORMS[kind] if (form.engine, form.keeps_filter) == (engine, keeps))


def keeping(kind: str, name: str) -> str:
    """The form that does what the form ``name`` does and keeps its filter; itself where there is none."""
    cached = "cached" if name == "rfft" else f"{name}-cached"
    return cached if any(form.name == cached for form in FORMS[kind]) else name


def one_of(name: str, names: Iterable[str], what: str) -> str:
    """``name`` itself if it is among ``names``; else a ValueError that says what was probably meant."""
    candidates = list(names)
    if name in candidates:
        return name
    raise ValueError(f"unknown {what} {name!r}{did_you_mean(str(name), candidates)}")


def images_at_once(channels: int, features: int, frequencies: int, real: int) -> int:
    """Images that :mod:`niffbench.niff.factored` takes at once, at least one.

    Args:
        channels: spectra of one image.
        features: K, of either MLP's last hidden layer.
        frequencies: of the half plane.
        real: bytes of a real number.
    """
    return max(1, LARGEST_PIECE // (2 * features * channels * frequencies * 2 * real))
