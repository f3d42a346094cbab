"""Kernels: a spec compiled for a pair of lengths."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _hopweave, _tensors, _threads
from ._hopweave import ShapeError
from ._spec import Spec


@dataclass(frozen=True)
class Dropout:
    """Which elements a training step drops: weights of A, and elements of Z after every hop.

    Rates are 0 to below 1. The same seed drops the same elements in forward and backward calls.
    """

    attention: float = 0.0
    hop: float = 0.0
    seed: int = 0

    def _native(self) -> tuple[float, float, int]:
        for name in ("attention", "hop"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise ValueError(f"dropout: the {name} rate is {rate}; expected 0 to below 1")
        return float(self.attention), float(self.hop), int(self.seed) % 2**64


class _Arguments:
    """What a call brings besides tensors, as the native half reads it."""

    __slots__ = ("_alive", "dropout", "inputs", "key_lengths", "layouts", "lists", "segments")

    def __init__(self, inputs: Mapping[str, Any] | None, key_lengths: Any, dropout: Dropout | None) -> None:
        self.key_lengths = _tensors.key_lengths(key_lengths)
        self.inputs: list[tuple[str, _tensors.Described]] = []
        self.segments: list[tuple[str, _tensors.Described]] = []
        self.layouts: list[tuple[str, _tensors.Described]] = []
        self.lists: list[tuple[str, _tensors.Described]] = []
        self._alive: list[Any] = []
        for name, value in (inputs or {}).items():
            kind = _tensors.dtype_name(value) if hasattr(value, "dtype") else type(value).__name__
            if kind.startswith(("bool", "int", "uint")) and len(value.shape) == 4:
                described, picked = _tensors.describe_picked(name, value)
                (self.layouts if picked.dtype == "uint8" else self.lists).append((name, described))
                self._alive.append(picked)
            elif kind.startswith(("int", "uint")) or not hasattr(value, "dtype"):
                described, ids = _tensors.describe_ids(name, value)
                self.segments.append((name, described))
                self._alive.append(ids)
            else:
                self.inputs.append((name, _tensors.describe_input(name, value)))
        self.dropout = dropout._native() if dropout is not None else None


class Kernel:
    """A spec compiled for `q_len` queries and `kv_len` keys. Made by `hopweave.compile`; safe to call from many threads."""

    def __init__(self, spec: Spec, q_len: int, kv_len: int, native: _hopweave.Operator) -> None:
        self._spec, self._q_len, self._kv_len, self._native = spec, q_len, kv_len, native

    @property
    def spec(self) -> Spec:
        return self._spec

    @property
    def q_len(self) -> int:
        return self._q_len

    @property
    def kv_len(self) -> int:
        return self._kv_len

    def __repr__(self) -> str:
        return f"<hopweave.Kernel {self._spec.name!r}: {self._q_len} queries, {self._kv_len} keys>"

    def explain(self) -> str:
        """Tile family, strategy, and why."""
        plan = self._native.plan()
        if plan is None:
            return "the kernel is compiled at the first call, when its neighbors are known"
        isa, strategy, reasons = plan
        return "\n".join([f"{isa} tiles, strategy {strategy}", *(f"  {reason}" for reason in reasons)])

    def __call__(
        self,
        q: Any,
        k: Any,
        v: Any,
        *,
        key_lengths: Any = None,
        inputs: Mapping[str, Any] | None = None,
        dropout: Dropout | None = None,
        return_lse: bool = False,
        out: Any = None,
    ) -> Any:
        """Attention.

        Parameters
        ----------
        q : array or tensor `[batch, heads, q_len, head_dim]`
        k : array or tensor `[batch, kv_heads, kv_len, head_dim]`
        v : array or tensor `[batch, kv_heads, kv_len, value_dim]`
            numpy arrays or torch tensors of the spec's dtype, any strides with a unit last one. They are read in place.
        key_lengths : integers `[batch]`, optional
            Keys from there on are padding and never read.
        inputs : dict, optional
            Float32 tensors that score mods and hops read, integer ids `[batch, kv_len]` of `segments`, and picked neighbors
            `[batch or 1, heads or kv_heads or 1, rows, …]` (bool or uint8 layouts of blocks, or int32 lists that -1 ends), by
            name.
        dropout : Dropout, optional
        return_lse : bool
            Also give the natural log-sum-exp of the scores.
        out : array or tensor `[batch, heads, q_len, value_dim]`, optional
            Where the output goes, written in place; it may not overlap anything that the call reads.

        Returns
        -------
        out, or (out, lse)
            `[batch, heads, q_len, value_dim]`, of the kind that q is, and float32 `[batch, heads, q_len]`.

        Raises
        ------
        ShapeError
            For a tensor that does not fit; the message names it.
        """
        dtype = self._spec.dtype
        self._same_kind(q, {"k": k, "v": v, "out": out})
        described = [_tensors.describe(name, value, dtype) for name, value in (("q", q), ("k", k), ("v", v))]
        arguments = _Arguments(inputs, key_lengths, dropout)
        batch = int(q.shape[0]) if len(q.shape) == 4 else 0
        shape = (batch, self._spec.heads, self._q_len, self._spec.value_dim)
        if out is None:
            target = _tensors.empty(q, shape, dtype)
            place = _tensors.describe("out", target, dtype)
        else:
            target, place = out, _tensors.describe("out", out, dtype)
            _tensors.check_writable("out", out)
            if place[1] != shape:
                raise ShapeError(f"out: shape {list(out.shape)}; expected {list(shape)}")
            if min(place[2]) < 0:
                # An array that runs backwards, of which kernels know nothing.
                target = _tensors.empty(q, shape, dtype)
                place = _tensors.describe("out", target, dtype)
        lse = _tensors.empty(q, shape[:3], "f32")
        of_lse = _tensors.describe("lse", lse, "f32")
        self._native.forward(*described, arguments, place, of_lse, _threads.of_torch())
        if target is out:
            _tensors.wrote(out)
        elif out is not None:
            out[...] = target
            target = out
        return (target, lse) if return_lse else target

    def backward(
        self,
        q: Any,
        k: Any,
        v: Any,
        grad_out: Any,
        *,
        out: Any = None,
        lse: Any = None,
        key_lengths: Any = None,
        inputs: Mapping[str, Any] | None = None,
        dropout: Dropout | None = None,
        return_inputs: bool = False,
    ) -> Any:
        """The gradients of q, k and v from that of the output, `grad_out [batch, heads, q_len, value_dim]`.

        `out` and `lse`, which a call with the same arguments gave, spare computing them again. With `return_inputs`,
        a dict of the gradients of the float inputs follows.

        Returns
        -------
        (dq, dk, dv) or (dq, dk, dv, inputs)
            Of the shapes of q, k and v, and of the kind that q is.
        """
        dtype = self._spec.dtype
        self._same_kind(q, {"k": k, "v": v, "grad_out": grad_out})
        tensors = (("q", q), ("k", k), ("v", v), ("grad_out", grad_out))
        described = [_tensors.describe(name, value, dtype) for name, value in tensors]
        if (out is None) != (lse is None):
            raise ShapeError("out and lse: one is given and one is not; expected both, or neither")
        saved = None
        if out is not None:
            saved = (_tensors.describe("out", out, dtype), _tensors.describe("lse", lse, "f32"))
        grads = tuple(_tensors.empty(q, tuple(like.shape), dtype) for like in (q, k, v))
        into = [_tensors.describe(name, grad, dtype) for name, grad in zip(("dq", "dk", "dv"), grads, strict=True)]
        arguments = _Arguments(inputs, key_lengths, dropout)
        of_inputs = self._native.backward(*described, saved, arguments, into, _threads.of_torch())
        if not return_inputs:
            return grads
        return (*grads, {name: _tensors.as_kind(grad, q) for name, grad in of_inputs})

    @staticmethod
    def _same_kind(q: Any, others: Mapping[str, Any]) -> None:
        torch = _tensors.is_torch(q)
        for name, value in others.items():
            if value is not None and _tensors.is_torch(value) != torch:
                kinds = ("a torch tensor", "a numpy array")
                raise TypeError(f"{name}: {kinds[torch]}; expected {kinds[not torch]}, as q is")


def compile(
    spec: Spec,
    q_len: int,
    kv_len: int | None = None,
    *,
    isa: str = "auto",
    threads: int | None = None,
    strategy: str | None = None,
    memory_limit: int | None = None,
) -> Kernel:
    """Compiles a spec for one pair of lengths, in milliseconds.

    Parameters
    ----------
    spec : Spec
    q_len, kv_len : int
        Queries and keys; as many keys as queries where only one is given.
    isa : "auto", "portable", "avx2" or "avx512"
    threads : int, optional
        Threads of a call. By default as many as torch has at the time (`torch.set_num_threads`) where torch is imported,
        otherwise all cores; `hopweave.threads()` says which threads they are.
    strategy : str, optional
        "flash", "resident", "recompute", "wavefront" or "triangular"; chosen by a cost model by default.
    memory_limit : int, optional
        Bytes that masks, tables and scratch may take; 80 % of the free memory by default.

    Raises
    ------
    SpecError
        Where the spec does not fit the lengths.
    UnsupportedError
        Where this machine or version cannot serve what is asked for.
    """
    kv_len = q_len if kv_len is None else kv_len
    native = _hopweave.Operator(_spec(spec)._native, q_len, kv_len, isa, threads, strategy, memory_limit)
    return Kernel(spec, q_len, kv_len, native)


def _spec(spec: Any) -> Spec:
    if not isinstance(spec, Spec):
        raise TypeError(f"spec: a {type(spec).__name__}; expected a hopweave.Spec, such as Spec.load(path) gives")
    return spec


_KEPT = 64
_kernels: OrderedDict[tuple[Any, ...], Kernel] = OrderedDict()
_lock = threading.Lock()


def kernel_for(spec: Spec, q_len: int, kv_len: int, isa: str = "auto", threads: int | None = None) -> Kernel:
    """The kernel of a spec at its lengths, compiled at the first use; the 64 used last are kept."""
    key = (spec, q_len, kv_len, isa, threads)
    with _lock:
        kernel = _kernels.get(key)
        if kernel is not None:
            _kernels.move_to_end(key)
            return kernel
    # Compiled without the lock: other lengths need not wait.
    kernel = compile(spec, q_len, kv_len, isa=isa, threads=threads)
    with _lock:
        _kernels[key] = kernel
        _kernels.move_to_end(key)
        while len(_kernels) > _KEPT:
            _kernels.popitem(last=False)
    return kernel


def attention(
    q: Any,
    k: Any,
    v: Any,
    spec: Spec,
    *,
    isa: str = "auto",
    threads: int | None = None,
    **arguments: Any,
) -> Any:
    """Attention by a spec, compiled at the first use of a length and then kept. Arguments as of `Kernel.__call__`."""
    lengths = []
    for name, value in (("q", q), ("k", k)):
        if not hasattr(value, "shape"):
            raise TypeError(f"{name}: a {type(value).__name__}; expected a numpy array or a torch tensor")
        if len(value.shape) != 4:
            raise ShapeError(f"{name}: shape {list(value.shape)}; expected [batch, heads, length, width]")
        lengths.append(int(value.shape[2]))
    return kernel_for(_spec(spec), *lengths, isa=isa, threads=threads)(q, k, v, **arguments)


def select(q: Any, k: Any, spec: Spec) -> Any:
    """The layout that the spec's `top_blocks` picks.

    Parameters
    ----------
    q : array or tensor `[batch, heads, q_len, head_dim]`
    k : array or tensor `[batch, kv_heads, kv_len, head_dim]`
        Of the spec's dtype.
    spec : Spec
        Its pattern has one `top_blocks` node.

    Returns
    -------
    bool `[batch, heads, query blocks, key blocks]`, of the kind that q is
    """
    _spec(spec)
    for name, value in (("q", q), ("k", k)):
        if not hasattr(value, "shape") or len(value.shape) != 4:
            found = list(value.shape) if hasattr(value, "shape") else type(value).__name__
            raise ShapeError(f"{name}: {found}; expected a tensor [batch, heads, length, width]")
    kernel = kernel_for(spec, int(q.shape[2]), int(k.shape[2]))
    described = [_tensors.describe(name, value, spec.dtype) for name, value in (("q", q), ("k", k))]
    picked = kernel._native.select(*described, _threads.of_torch()).view(bool)
    return _tensors.as_kind(picked, q)
