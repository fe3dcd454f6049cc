"""Operations on fake tensors in a fraction of the time: what one gave for such tensors it gives again.

torch's own cache asks some twenty questions about each tensor, many of them through the dispatcher; the results of
all operations that are taken here depend on shapes, strides and types. An entry is made only of what was seen to
be nothing but new tensors, views of an argument, or arguments themselves, and to change no argument's shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_NAMESPACES = frozenset({"aten", "prims", "niffbench"})
_MOST = 100_000


class _Result(NamedTuple):
    """One result: argument number ``of``, a view of it where there is a ``shape``; without ``of`` a new tensor."""

    of: int | None
    shape: torch.Size | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype | None = None
    is_conjugate: bool = False
    is_negative: bool = False


_Entry = tuple[type | None, tuple[_Result | None, ...]]
"""What holds the results, None of a single one, and these."""

_entries: dict[tuple[object, ...], _Entry | None] = {}


class Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """torch's mode of fake tensors, that asks itself before it asks torch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.states: dict[torch.device, dict[str, object]] = {}  # what is in a new fake tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        key, tensors = _key(func, args, kwargs)
        entry = _entries.get(key) if key is not None else None
        if entry is not None:
            return _again(entry, tensors)
        if key is None or key in _entries:
            return super().__torch_dispatch__(func, types, args, kwargs)
        storages = [tensor.untyped_storage()._cdata for tensor in tensors]
        cached, self.cache_enabled = self.cache_enabled, False  # An entry there takes as long as the operation.
        try:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.cache_enabled = cached
        if len(_entries) >= _MOST:
            _entries.clear()
        is_changed = key != _key(func, args, kwargs)[0]
        is_changed |= storages != [tensor.untyped_storage()._cdata for tensor in tensors]
        _entries[key] = None if is_changed else _entry(func, out, tensors)
        return out


def call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``func(*args, **kwargs)``, of whatever tensors; of fakes without the dispatcher where that can be."""
    key, tensors = _key(func, args, kwargs)
    entry = _entries.get(key) if key is not None and type(tensors[0].fake_mode) is Fakes else None
    return func(*args, **kwargs) if entry is None else _again(entry, tensors)


def _key(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[object, ...] | None, list[FakeTensor]]:
    """What the results of an operation depend on, None where that may be more; and the tensors given to it."""
    key: list[object] = [func, torch.get_default_dtype()]
    tensors: list[FakeTensor] = []
    is_whole = _is_plain(func) and _describe(args, key, tensors)
    if kwargs and is_whole:
        key += kwargs
        is_whole = _describe(tuple(kwargs.values()), key, tensors)
    return (tuple(key) if is_whole and tensors else None), tensors


def _again(entry: _Entry, tensors: Sequence[FakeTensor]) -> Any:
    held, results = entry
    made = [None if result is None else _made(result, tensors) for result in results]
    return made[0] if held is None else held(made)


def _describe(values: Sequence[Any], key: list[object], tensors: list[FakeTensor]) -> bool:
    """Add to ``key`` what results depend on of arguments; False where that may be more."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None:
                return False
            tensors.append(value)
            key += (value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device)
            if value.dtype.is_complex:
                key.append(value.is_conj())
            if value.is_neg():
                key.append("negative")
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            if not _describe(value, key, tensors):
                return False
        elif kind in _SIMPLE:
            key += (kind, value)
        else:
            return False
    return True


_SIMPLE = frozenset(
    {int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)


@lru_cache(maxsize=4096)
def _is_plain(func: Any) -> bool:
    """Whether results of an operation depend on shapes and types alone."""
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
    return func.namespace in _NAMESPACES and not tags & set(func.tags)


def _entry(func: Any, out: Any, tensors: Sequence[FakeTensor]) -> _Entry | None:
    """How to make ``out`` once more from such tensors; None where that would be another one."""
    if out is None or isinstance(out, Tensor):
        held, outs = None, (out,)
    elif type(out) in (list, tuple):
        held, outs = type(out), tuple(out)
    else:
        return None
    places = {tensor.untyped_storage()._cdata: place for place, tensor in reversed(list(enumerate(tensors)))}
    results: list[_Result | None] = []
    new: set[int] = set()
    for one in outs:
        if one is None:
            results.append(None)
            continue
        if type(one) is not FakeTensor or one.constant is not None or one.fake_device != tensors[0].fake_device:
            return None
        same = next((place for place, tensor in enumerate(tensors) if tensor is one), None)
        if same is not None:
            results.append(_Result(same))
            continue
        storage = one.untyped_storage()._cdata
        of = places.get(storage)
        is_view = func.is_view or func is torch.ops.aten._unsafe_view.default
        if storage in new or (of is not None and not is_view):
            return None
        new |= {storage} if of is None else set()
        result = _Result(
            of, one.shape, one.stride(), int(one.storage_offset()), one.dtype, one.is_conj(), one.is_neg()
        )
        again = _made(result, tensors)
        if (
            torch._C._dispatch_key_set(again) != torch._C._dispatch_key_set(one)
            or again.untyped_storage().nbytes() != one.untyped_storage().nbytes()
            or again.is_conj() != one.is_conj()
        ):
            return None
        results.append(result)
    return held, tuple(results)


def _made(result: _Result, tensors: Sequence[FakeTensor]) -> FakeTensor:
    like = tensors[result.of or 0]
    if result.shape is None:
        return like
    mode: FakeTensorMode = like.fake_mode
    if result.of is None:
        with torch._C._DisableTorchDispatch():
            bare = torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta")
    else:
        with in_kernel_invocation_manager(mode):
            bare = torch.empty_strided((), (), dtype=result.dtype, device="meta")
            bare.set_(like.untyped_storage(), result.offset, result.shape, result.stride)
    if result.is_conjugate:
        torch._C._set_conj(bare, True)
    if result.is_negative:
        torch._C._set_neg(bare, True)
    return _fake(mode, bare, like.fake_device)


def _fake(mode: FakeTensorMode, bare: Tensor, device: torch.device) -> FakeTensor:
    """A fake tensor, made by its class once in a mode and else by what that leaves in it: a fifth of the time."""
    state = mode.states.get(device) if isinstance(mode, Fakes) else None
    if state is not None:
        fake: FakeTensor = Tensor._make_subclass(
            FakeTensor, bare, False, dispatch_device=True, device_for_backend_keys=device
        )
        torch._C._set_warn_deprecated_on_mutable_data_ptr(fake)
        fake.__dict__.update(state)
        return fake
    fake = FakeTensor(mode, bare, device)
    if isinstance(mode, Fakes):
        mode.states[device] = dict(fake.__dict__)
    return fake
