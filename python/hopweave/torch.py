"""Differentiable attention for torch.

`attention` is a custom operator, `torch.ops.hopweave.attention`, for `torch.compile`, fake tensors and transforms. In plain
eager code it is an autograd function that calls the kernel directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch


from ._hopweave import ShapeError
from ._kernel import Dropout, _spec, kernel_for
from ._spec import Spec

__all__ = ["attention"]

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: Spec,
    *,
    key_lengths: torch.Tensor | None = None,
    inputs: Mapping[str, torch.Tensor] | None = None,
    dropout: Dropout | None = None,
    return_lse: bool = False,
    isa: str = "auto",
    threads: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention by a spec, with gradients for q, k, v and the float inputs of score mods and hops.

    Parameters
    ----------
    q, k, v : Tensor `[batch, heads, q_len, head_dim]`, `[batch, kv_heads, kv_len, head_dim]`, `[…, value_dim]`
        Of the spec's dtype, on the CPU. A last axis of another stride than 1 is made contiguous.
    spec : Spec
    key_lengths : integer Tensor `[batch]`, optional
        Keys from there on are padding and never read.
    inputs : dict, optional
        Float32 tensors that score mods and hops read, integer ids `[batch, kv_len]` of `segments`, and picked neighbors (see
        `hopweave.Kernel`), by name. No gradient flows through what is picked.
    dropout : Dropout, optional
        Weights and hops that this step drops.
    return_lse : bool
        Also give the log-sum-exp `[batch, heads, q_len]`, through which no gradient flows.

    Returns
    -------
    Tensor `[batch, heads, q_len, value_dim]`, or it and log-sum-exp
    """
    _spec(spec)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: a {type(tensor).__name__}; expected a torch tensor")
        if tensor.dim() != 4:
            raise ShapeError(f"{name}: shape {list(tensor.shape)}; expected [batch, heads, length, width]")
        if tensor.device.type not in ("cpu", "meta"):
            raise ShapeError(f"{name}: a tensor on {tensor.device}; expected one on the CPU: {name}.cpu()")
        if tensor.dtype is not _DTYPES[spec.dtype]:
            found, wanted = str(tensor.dtype).removeprefix("torch."), str(_DTYPES[spec.dtype]).removeprefix("torch.")
            raise ShapeError(f"{name}: a tensor of {found}; expected {wanted}, the `dtype` of the spec")
    floats, ids = _sorted(inputs)
    if _is_eager(q, k, v, *floats.values(), *ids.values()):
        kernel = kernel_for(spec, q.shape[2], k.shape[2], isa, threads)
        contiguous = [tensor.contiguous() for tensor in floats.values()]
        rest = (kernel, key_lengths, dropout, tuple(floats), ids)
        out, lse = _Eager.apply(_unit(q), _unit(k), _unit(v), rest, *contiguous)
        return (out, lse) if return_lse else out
    rates = (0.0, 0.0, 0) if dropout is None else dropout._native()
    out, lse = _attention(
        _unit(q),
        _unit(k),
        _unit(v),
        spec.to_yaml(),
        key_lengths,
        [tensor.contiguous() for tensor in floats.values()],
        list(ids.values()),
        "\n".join([*floats, *ids]),
        rates[0],
        rates[1],
        # The operator's integers are signed.
        rates[2] - 2**64 if rates[2] >= 2**63 else rates[2],
        isa,
        threads or 0,
    )
    return (out, lse) if return_lse else out


def _is_eager(*tensors: torch.Tensor) -> bool:
    """Whether nothing but autograd looks on: neither a compiler, nor fake tensors, nor a transform."""
    modes = getattr(torch._C, "_len_torch_dispatch_stack", None)
    transforms = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
    if torch.compiler.is_compiling() or modes is None or transforms is None or modes() > 0 or transforms() is not None:
        return False
    return all(type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type == "cpu" for x in tensors)


class _Eager(torch.autograd.Function):
    """The operator without torch's dispatcher, which costs more than the kernel of a short sequence."""

    @staticmethod
    def forward(ctx, q, k, v, rest, *floats):
        kernel, key_lengths, dropout, names, ids = rest
        inputs = {**{name: x.detach() for name, x in zip(names, floats, strict=True)}, **ids}
        arguments = {"key_lengths": key_lengths, "inputs": inputs, "dropout": dropout}
        out, lse = kernel(q.detach(), k.detach(), v.detach(), return_lse=True, **arguments)
        ctx.save_for_backward(q, k, v, out, lse, *floats)
        ctx.rest = rest
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, _grad_lse):
        q, k, v, out, lse, *floats = (x.detach() for x in ctx.saved_tensors)
        kernel, key_lengths, dropout, names, ids = ctx.rest
        inputs = {**dict(zip(names, floats, strict=True)), **ids}
        arguments = {"key_lengths": key_lengths, "inputs": inputs, "dropout": dropout}
        dq, dk, dv, of_inputs = kernel.backward(
            q, k, v, _unit(grad_out), out=out, lse=lse, return_inputs=True, **arguments
        )
        return dq, dk, dv, None, *(of_inputs[name] for name in names)


def _sorted(inputs: Mapping[str, torch.Tensor] | None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Float inputs and ids."""
    floats, ids = {}, {}
    for name, tensor in (inputs or {}).items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"input `{name}`: a {type(tensor).__name__}; expected a torch tensor")
        if tensor.is_floating_point():
            floats[name] = tensor
        else:
            ids[name] = tensor
    return floats, ids


def _unit(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


@lru_cache(maxsize=256)
def _parsed(text: str) -> Spec:
    return Spec.from_yaml(text)


def _call(spec: str, names: str, floats: list[torch.Tensor], ids: list[torch.Tensor]) -> tuple[Spec, dict]:
    return _parsed(spec), dict(zip(names.split("\n") if names else [], [*floats, *ids], strict=True))


def _dropout(attention_rate: float, hop_rate: float, seed: int) -> Dropout | None:
    return Dropout(attention_rate, hop_rate, seed) if attention_rate or hop_rate else None


@torch.library.custom_op("hopweave::attention", mutates_args=(), device_types="cpu")
def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: str,
    key_lengths: torch.Tensor | None,
    floats: list[torch.Tensor],
    ids: list[torch.Tensor],
    names: str,
    attention_rate: float,
    hop_rate: float,
    seed: int,
    isa: str,
    threads: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    parsed, inputs = _call(spec, names, floats, ids)
    kernel = kernel_for(parsed, q.shape[2], k.shape[2], isa, threads or None)
    return kernel(
        _unit(q.detach()),
        _unit(k.detach()),
        _unit(v.detach()),
        key_lengths=key_lengths,
        inputs={name: tensor.detach() for name, tensor in inputs.items()},
        dropout=_dropout(attention_rate, hop_rate, seed),
        return_lse=True,
    )


@_attention.register_fake
def _(q, k, v, spec, key_lengths, floats, ids, names, attention_rate, hop_rate, seed, isa, threads):
    batch, heads, q_len, _ = q.shape
    return q.new_empty(batch, heads, q_len, v.shape[3]), q.new_empty(batch, heads, q_len, dtype=torch.float32)


@torch.library.custom_op("hopweave::attention_backward", mutates_args=(), device_types="cpu")
def _attention_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    spec: str,
    key_lengths: torch.Tensor | None,
    floats: list[torch.Tensor],
    ids: list[torch.Tensor],
    names: str,
    attention_rate: float,
    hop_rate: float,
    seed: int,
    isa: str,
    threads: int,
) -> list[torch.Tensor]:
    parsed, inputs = _call(spec, names, floats, ids)
    kernel = kernel_for(parsed, q.shape[2], k.shape[2], isa, threads or None)
    dq, dk, dv, of_inputs = kernel.backward(
        _unit(q.detach()),
        _unit(k.detach()),
        _unit(v.detach()),
        _unit(grad_out.detach()),
        out=out.detach(),
        lse=lse.detach(),
        key_lengths=key_lengths,
        inputs={name: tensor.detach() for name, tensor in inputs.items()},
        dropout=_dropout(attention_rate, hop_rate, seed),
        return_inputs=True,
    )
    return [dq, dk, dv, *(of_inputs[name] for name in list(inputs)[: len(floats)])]


@_attention_backward.register_fake
def _(q, k, v, out, lse, grad_out, spec, key_lengths, floats, ids, names, attention_rate, hop_rate, seed, isa, threads):
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (q, k, v, *floats)]


def _setup(ctx, inputs, output) -> None:
    q, k, v, spec, key_lengths, floats, ids, names, *rest = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, *([] if key_lengths is None else [key_lengths]), *floats, *ids)
    ctx.has_lengths, ctx.floats = key_lengths is not None, len(floats)
    ctx.call = (spec, names, *rest)
    ctx.mark_non_differentiable(lse)


def _backward(ctx, grad_out, _grad_lse):
    q, k, v, out, lse, *others = ctx.saved_tensors
    key_lengths = others.pop(0) if ctx.has_lengths else None
    floats, ids = others[: ctx.floats], others[ctx.floats :]
    spec, names, *rest = ctx.call
    dq, dk, dv, *of_floats = torch.ops.hopweave.attention_backward(
        q, k, v, out, lse, grad_out, spec, key_lengths, floats, ids, names, *rest
    )
    return dq, dk, dv, None, None, of_floats, [None] * len(ids), None, *([None] * len(rest))


_attention.register_autograd(_backward, setup_context=_setup)
