"""numpy arrays and torch tensors as the native half takes them: address, shape, strides in elements. Nothing is copied."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ._hopweave import ShapeError, UnsupportedError

Described = tuple[int, tuple[int, ...], tuple[int, ...]]

_NUMPY = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def is_torch(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def dtype_name(value: Any) -> str:
    """The name of a tensor's dtype, the same for numpy and torch."""
    return str(value.dtype).removeprefix("torch.")


def describe(name: str, value: Any, dtype: str) -> Described:
    """A tensor of `dtype` ("f32", "bf16", "f16") with a unit last stride.

    Raises
    ------
    ShapeError
        That names the argument, what it is and what it must be.
    """
    wanted = _NAMES[dtype]
    if is_torch(value):
        found = str(value.dtype).removeprefix("torch.")
        if value.device.type != "cpu":
            raise ShapeError(f"{name}: a tensor on {value.device}; expected one on the CPU: {name}.cpu()")
        if value.layout is not sys.modules["torch"].strided:
            raise ShapeError(f"{name}: a tensor of layout {value.layout}; expected a dense one: {name}.to_dense()")
        if found != wanted:
            raise ShapeError(_wrong_dtype(name, found, wanted))
        shape, strides, address = tuple(value.shape), value.stride(), value.data_ptr()
    elif isinstance(value, np.ndarray):
        kind = value.dtype
        # numpy has no bfloat16 of its own: ml_dtypes has, and bits do for those who know.
        fits = kind == _NUMPY[dtype] if dtype in _NUMPY else kind.name == "bfloat16"
        if not fits or not kind.isnative:
            raise ShapeError(_wrong_dtype(name, kind.name if kind.isnative else f"byte-swapped {kind.name}", wanted))
        size = value.itemsize
        shape, strides, address = value.shape, value.strides, value.ctypes.data
        if any(stride % size for stride in strides):
            raise ShapeError(f"{name}: strides of {strides} bytes; expected whole elements of {size} bytes")
        strides = tuple(stride // size for stride in strides)
    else:
        raise TypeError(f"{name}: a {type(value).__name__}; expected a numpy array or a torch tensor")
    if len(shape) > 0 and 0 not in shape and shape[-1] > 1 and strides[-1] != 1:
        raise ShapeError(
            f"{name}: strides {tuple(strides)}; expected a last axis with stride 1: "
            + (f"{name}.contiguous()" if is_torch(value) else f"numpy.ascontiguousarray({name})")
        )
    return address, tuple(shape), tuple(strides)


def _wrong_dtype(name: str, found: str, wanted: str) -> str:
    return f"{name}: a tensor of {found}; expected {wanted}, the `dtype` of the spec"


def describe_input(name: str, value: Any) -> Described:
    """An input of score mods: float32, contiguous."""
    return describe(f"input `{name}`", value, "f32")


def describe_ids(name: str, value: Any) -> tuple[Described, Any]:
    """Segment ids, int32 `[batch, kv_len]`; other integers are converted. Also gives what must be kept alive."""
    if is_torch(value):
        value = value.detach().cpu().numpy()
    ids = np.asarray(value)
    if ids.dtype.kind not in "iu":
        raise ShapeError(f"input `{name}`: a tensor of {ids.dtype.name}; expected integers, the ids of segments")
    if ids.size and (ids.max() > np.iinfo(np.int32).max or ids.min() < 0):
        raise ShapeError(f"input `{name}`: ids from {ids.min()} to {ids.max()}; expected 0 to {np.iinfo(np.int32).max}")
    ids = np.ascontiguousarray(ids, dtype=np.int32)
    return (ids.ctypes.data, ids.shape, tuple(stride // 4 for stride in ids.strides)), ids


def describe_picked(name: str, value: Any) -> tuple[Described, Any]:
    """Picked neighbors: a layout of bools or bytes as uint8, or lists of integers as int32. Also gives what must be kept alive."""
    if is_torch(value):
        value = value.detach().cpu().numpy()
    picked = np.asarray(value)
    if picked.dtype.kind == "b" or picked.dtype == np.uint8:
        picked = np.ascontiguousarray(picked).view(np.uint8)
    else:
        limits = np.iinfo(np.int32)
        if picked.size and (picked.max() > limits.max or picked.min() < limits.min):
            raise ShapeError(f"input `{name}`: numbers from {picked.min()} to {picked.max()}; expected 32-bit integers")
        picked = np.ascontiguousarray(picked, dtype=np.int32)
    size = picked.dtype.itemsize
    return (picked.ctypes.data, picked.shape, tuple(stride // size for stride in picked.strides)), picked


def key_lengths(value: Any) -> list[int] | None:
    """Key lengths `[batch]` as integers."""
    if value is None:
        return None
    if is_torch(value):
        value = value.detach().cpu().numpy()
    lengths = np.asarray(value)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ShapeError(
            f"key_lengths: {lengths.dtype.name} of shape {list(lengths.shape)}; expected one integer for each sequence, [batch]"
        )
    return lengths.tolist()


def empty(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """A tensor of `dtype`, of the kind that `like` is, for a kernel to write; from torch's or numpy's own allocator, which gives
    memory again that the program has used before."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, _NAMES[dtype]), device="cpu")
    return np.empty(shape, dtype=like.dtype if dtype == "bf16" else _NUMPY[dtype])


def check_writable(name: str, value: Any) -> None:
    """Refuses what may not be written.

    Raises
    ------
    ShapeError, UnsupportedError
    """
    if is_torch(value):
        if value.requires_grad and sys.modules["torch"].is_grad_enabled():
            raise UnsupportedError(f"{name}: a tensor that requires grad; expected {name}.detach()")
    elif not value.flags.writeable:
        raise ShapeError(f"{name}: a read-only array; expected one that may be written")


def wrote(value: Any) -> None:
    """Tells autograd that a tensor of the caller has been written, as torch's own functions do."""
    if is_torch(value) and not value.is_inference():
        sys.modules["torch"].autograd.graph.increment_version(value)


def as_kind(array: np.ndarray, like: Any) -> Any:
    """What the native half gave, of float32, as the kind of tensor that `like` is; no copy."""
    return sys.modules["torch"].from_numpy(array) if is_torch(like) else array
