"""An attention implementation for Hugging Face transformers.

>>> import hopweave.transformers
>>> hopweave.transformers.register()
>>> model = AutoModel.from_pretrained("answerdotai/ModernBERT-base", attn_implementation="hopweave")

Encoders and decoders run through kernels that are compiled for their pattern: full or causal, sliding windows, soft
caps, grouped heads, a cache of keys. Padding becomes key lengths (right) or segments (left, packed sequences), so that
it costs nothing. What is not known here is refused by name, never computed as something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import (
    AttentionMaskInterface,
    bidirectional_mask_function,
    causal_mask_function,
    prepare_padding_mask,
)

from ._hopweave import ShapeError, UnsupportedError
from ._kernel import Dropout
from ._spec import Spec
from .torch import attention

__all__ = ["register"]

_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def register(name: str = "hopweave") -> None:
    """Adds the implementation to transformers under `name`, for `attn_implementation=name`. May be called again."""
    AttentionInterface.register(name, _attention)
    AttentionMaskInterface.register(name, _mask)


@dataclass(frozen=True)
class _Structure:
    """Who may attend to whom: a key at most `left` before and `right` behind its query; no bound where None."""

    left: int | None = None
    right: int | None = None

    def with_causal(self) -> _Structure:
        return replace(self, right=0)


@dataclass(frozen=True, eq=False)
class _Facts:
    """What a mask says of a batch: its structure, and key lengths `[batch]` or ids of segments `[batch, keys]`."""

    structure: _Structure | None
    key_lengths: torch.Tensor | None
    segments: torch.Tensor | None
    keys: int


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """The mask of a model, as transformers asks for it, without writing it out.

    Returns
    -------
    Tensor
        The padding mask, bool `[batch, 1, 1, keys]`, that carries what `_attention` needs to know. It has four axes, as
        masks that transformers leaves alone have.
    """
    structure, packed = _read(mask_function)
    # Keys behind the last query, in a cache of a fixed size, are not there yet.
    keys = int(q_offset) + q_length - int(kv_offset)
    # Encoder states are not related to queries by position.
    if structure == _Structure():
        keys = kv_length if attention_mask is not None or q_offset == 0 else min(keys, kv_length)
    if not 0 <= keys <= kv_length:
        raise UnsupportedError(
            f"{kv_length} keys from position {int(kv_offset)} on, for queries up to position {int(q_offset) + q_length}; "
            "expected keys for every query"
        )
    padding = prepare_padding_mask(attention_mask, kv_length, int(kv_offset))
    if padding is None:
        mask = torch.ones(batch_size, keys, dtype=torch.bool)
    else:
        mask = padding[:, int(kv_offset) : int(kv_offset) + keys].to(torch.bool)
    lengths, segments = _padding(mask)
    if packed is not None:
        if segments is not None or lengths is not None:
            raise UnsupportedError("attention_mask: padding of packed sequences; expected packed sequences without padding")
        segments = packed.to(torch.int32)
    mask = mask[:, None, None]
    mask.hopweave = _Facts(structure, lengths, segments, keys)
    return mask


def _read(function: Callable) -> tuple[_Structure, torch.Tensor | None]:
    """What a mask function of transformers allows, and the ids of packed sequences.

    transformers describes masks by closures. Those that it makes itself are known by their names; others could allow
    anything.
    """
    if function is causal_mask_function:
        return _Structure(right=0), None
    if function is bidirectional_mask_function:
        return _Structure(), None
    kind = getattr(function, "__qualname__", repr(function)).split(".")[0]
    cells = dict(
        zip(
            getattr(getattr(function, "__code__", None), "co_freevars", ()),
            (cell.cell_contents for cell in getattr(function, "__closure__", None) or ()),
            strict=False,
        )
    )
    known = getattr(function, "__module__", "") == causal_mask_function.__module__
    match kind if known else "":
        case "and_masks":
            structure, packed = _Structure(), None
            for part in cells["mask_functions"]:
                of_part, packed_part = _read(part)
                structure = _Structure(_least(structure.left, of_part.left), _least(structure.right, of_part.right))
                packed = packed if packed_part is None else packed_part
            return structure, packed
        case "sliding_window_overlay":
            return _Structure(left=int(cells["sliding_window"]) - 1), None
        case "sliding_window_bidirectional_overlay":
            return _Structure(int(cells["sliding_window"]), int(cells["sliding_window"])), None
        case "packed_sequence_mask_function":
            return _Structure(), cells["packed_sequence_mask"]
        case "remap_positions_for_packed_sequence":
            # Distances within a sequence are the same in its own positions.
            return _read(cells["mask_function"])
    name = getattr(function, "__qualname__", repr(function)).removesuffix(".<locals>.inner_mask")
    raise UnsupportedError(
        f"a mask made by `{name}`; expected causal, bidirectional, sliding windows and packed sequences "
        '(attn_implementation="eager" takes any mask)'
    )


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _padding(mask: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A padding mask, bool `[batch, keys]`, as key lengths `[batch]` or as ids of segments `[batch, keys]`."""
    if bool(mask.all()):
        return None, None
    turns = mask[:, 1:] != mask[:, :-1]
    # Right padding: real tokens, then padding.
    if not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        return mask.sum(1), None
    # Left padding, and perhaps right padding as well: one stretch of real tokens, which is a segment of its own.
    stretches = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, 0]
    if bool((stretches > 1).any()):
        row = int((stretches > 1).nonzero()[0, 0])
        raise UnsupportedError(
            f"attention_mask: padding between the tokens of sequence {row}; expected padding on the left or right"
        )
    ids = torch.nn.functional.pad(turns.cumsum(1), (1, 0))
    return None, ids.to(torch.int32)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention, as transformers calls it: query `[batch, heads, q_len, width]`, key and value with their own heads.

    Returns
    -------
    Tensor `[batch, q_len, heads, width]`, and no weights
    """
    if others.get("output_attentions"):
        raise UnsupportedError('output_attentions: weights are never written out; attn_implementation="eager" gives them')
    for name in ("position_bias", "s_aux", "head_mask"):
        if others.get(name) is not None:
            raise UnsupportedError(f"{name}: is not supported; attn_implementation=\"eager\" takes it")
    if query.dtype not in _DTYPES:
        raise ShapeError(f"query: a tensor of {query.dtype}; expected float32, bfloat16 or float16")
    facts = getattr(attention_mask, "hopweave", None)
    if facts is None:
        facts = _facts(attention_mask, key.shape[2])
    structure = facts.structure
    if structure is None:
        config = getattr(module, "config", None)
        causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        causal = causal and getattr(config, "is_causal", True) is not False
        reach = None if sliding_window is None else sliding_window - 1
        structure = _Structure(reach, 0 if causal else reach)
    if facts.keys < key.shape[2]:
        key, value = key[:, :, : facts.keys], value[:, :, : facts.keys]
    spec = _spec(
        query.shape[1],
        key.shape[1],
        query.shape[3],
        value.shape[3],
        _DTYPES[query.dtype],
        query.shape[3] ** -0.5 if scaling is None else float(scaling),
        structure,
        None if softcap is None else float(softcap),
        facts.segments is not None,
    )
    out = attention(
        query,
        key,
        value,
        spec,
        key_lengths=facts.key_lengths,
        inputs=None if facts.segments is None else {"segments": facts.segments},
        # A seed of torch's generator: torch.manual_seed repeats a training run.
        dropout=Dropout(attention=dropout, seed=int(torch.randint(2**62, ()))) if dropout > 0 else None,
    )
    return out.transpose(1, 2), None


def _facts(mask: torch.Tensor | None, keys: int) -> _Facts:
    """The facts of a mask that was not made by `_mask`: none at all, or a padding mask."""
    if mask is None:
        return _Facts(None, None, None, keys)
    if mask.dim() == 4 and mask.shape[1:3] == (1, 1) and mask.dtype is torch.bool:
        mask = mask[:, 0, 0]
    if mask.dim() != 2:
        raise UnsupportedError(
            f"attention_mask: shape {list(mask.shape)}; expected a padding mask [batch, keys] "
            '(attn_implementation="eager" takes any mask)'
        )
    return _Facts(None, *_padding(mask.to(torch.bool)), mask.shape[1])


@lru_cache(maxsize=256)
def _spec(
    heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    dtype: str,
    scale: float,
    structure: _Structure,
    softcap: float | None,
    segments: bool,
) -> Spec:
    """The spec of a layer."""
    match structure:
        case _Structure(None, None):
            pattern: Any = "full"
        case _Structure(None, 0):
            pattern = "causal"
        case _Structure(left, right):
            # No length reaches further than this.
            far = 2**30
            pattern = {"window": {"left": far if left is None else left, "right": far if right is None else right}}
    if segments:
        pattern = {"all": [pattern, {"segments": {"input": "segments"}}]}
    score: dict[str, Any] = {"scale": scale}
    if softcap is not None:
        score["mods"] = [{"softcap": softcap}]
    return Spec.from_dict({
        "name": "transformers-layer",
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "value_dim": value_dim,
        "dtype": dtype,
        "pattern": pattern,
        "score": score,
    })
