"""Diffuser: an encoder whose sparse attention diffuses over several hops.

Feng et al., "Diffuser: Efficient Transformers with Multi-hop Attention Diffusion for Long Sequences", AAAI 2023
(arXiv 2210.11794). A is the row-softmax of scores over a window, global and random tokens; the output is Z_hops with
Z_0 = V, Z_{k+1} = (1 - alpha) A Z_k + alpha V (equation 7). In training, weights of A and the Z behind every hop are
dropped out.

`diffusion` says how a layer's hops are weighted: by a `"fixed"` alpha as published; by `"learned"` coefficients, the
parameter `theta` `[heads, hops + 1]` of sum_k theta[h, k] A^k V; or `"all"`, the limit alpha (I - (1 - alpha) A)^-1 V with an
alpha for each head that is learned through the parameter `alpha_logit` `[heads]`. The limit costs about as much as two hops
where the pattern is causal; elsewhere it is iterated, some 130 times at alpha 0.1.

>>> model = DiffuserForSequenceClassification(DiffuserConfig(num_labels=10))
>>> logits = model(input_ids, attention_mask=mask)
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .._hopweave import ShapeError
from .._kernel import Dropout
from .._spec import Spec
from ..torch import attention

__all__ = [
    "DiffuserConfig",
    "DiffuserForMaskedLM",
    "DiffuserForSequenceClassification",
    "DiffuserLayer",
    "DiffuserModel",
    "DiffusionSelfAttention",
]


_DIFFUSIONS = ("fixed", "learned", "all")
_STARTS = ("alpha", "one_hop")
# Hops without end are iterated where the pattern is not causal, at most 1024 times: an alpha below 0.0135 does not settle.
_LEAST_ALPHA = 0.02


def _plain(value: Any) -> Any:
    """Lists and dicts in place of other sequences and mappings."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class DiffuserConfig:
    """Sizes of a model; the defaults are the published ones."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 4096
    type_vocab_size: int = 1
    pad_token_id: int = 1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    window: int = 64
    """Keys on each side of a query."""
    global_tokens: int = 64
    """Tokens at the beginning that attend to all, and that all attend to."""
    random_keys: int = 64
    """Keys drawn for every query, the same in all layers of a seed."""
    pattern_seed: int = 1
    hops: int = 5
    alpha: float = 0.1
    """Share of V that every hop restarts with. Where it is learned, where it starts."""
    diffusion: str | Sequence[str] = "fixed"
    """How hops are weighted: "fixed", "learned" or "all", for all layers, or one for each."""
    learned_start: str = "alpha"
    """What "learned" layers begin as: "alpha" is the fixed one, "one_hop" is plain attention."""
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    """Rate for the weights of A."""
    hop_dropout: float = 0.1
    """Rate for Z behind every hop. Hops without end drop neither weights nor hops, but the result at this rate."""
    num_labels: int = 2
    pattern: Any = None
    """Another pattern in place of window, global and random tokens, as a spec has it, such as `"full"`."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Other values of the spec by their paths, such as `{"dtype": "bf16"}`."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size}; expected a multiple of {self.num_attention_heads} attention heads"
            )
        if not isinstance(self.diffusion, str):
            # Lists, as JSON has them, would make a frozen value that can change.
            object.__setattr__(self, "diffusion", tuple(self.diffusion))
            if len(self.diffusion) != self.num_hidden_layers:
                raise ValueError(
                    f"diffusion: {len(self.diffusion)} of them; expected one, or {self.num_hidden_layers}, one a layer"
                )
        for name in {self.diffusion} if isinstance(self.diffusion, str) else self.diffusion:
            if name not in _DIFFUSIONS:
                raise ValueError(f"diffusion: {name!r}; expected {', '.join(map(repr, _DIFFUSIONS))}")
        if self.learned_start not in _STARTS:
            raise ValueError(f"learned_start: {self.learned_start!r}; expected {' or '.join(map(repr, _STARTS))}")
        if "all" in self.layer_diffusions() and not _LEAST_ALPHA < self.alpha < 1:
            raise ValueError(f'alpha: {self.alpha}; expected above {_LEAST_ALPHA} and below 1 with diffusion "all"')
        if "learned" in self.layer_diffusions() and self.learned_start == "one_hop" and self.hops < 1:
            raise ValueError(f'hops: {self.hops}; expected at least 1 with learned_start "one_hop"')

    def layer_diffusions(self) -> tuple[str, ...]:
        """`diffusion` of every layer."""
        if isinstance(self.diffusion, str):
            return (self.diffusion,) * self.num_hidden_layers
        return tuple(self.diffusion)

    def to_dict(self) -> dict[str, Any]:
        """The values, as JSON has them."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiffuserConfig:
        """The config of `to_dict`; values that are not there are the defaults."""
        known = [field.name for field in fields(cls)]
        for name in values:
            # Written beside the values by other libraries.
            if name not in known and name not in ("model_type", "architectures", "transformers_version"):
                raise ValueError(f"{name}: unknown; expected some of {', '.join(known)}")
        return cls(**{name: value for name, value in values.items() if name in known})

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` into a folder, which is made where there is none."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"model_type": "hopweave-diffuser", **self.to_dict()}, indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> DiffuserConfig:
        """Reads the `config.json` of a folder."""
        return cls.from_dict(json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8")))

    def spec(self, diffusion: str = "fixed") -> Spec:
        """The attention of a layer whose hops are weighted so."""
        pattern = self.pattern
        if pattern is None:
            pattern = {
                "any": [
                    {"window": {"radius": self.window}},
                    {"global": {"tokens": {"first": self.global_tokens}}},
                    {"random": {"keys_per_query": self.random_keys, "seed": self.pattern_seed}},
                ]
            }
        values = {
            "name": "diffuser",
            "heads": self.num_attention_heads,
            "head_dim": self.hidden_size // self.num_attention_heads,
            "pattern": pattern,
            "diffusion": {
                "fixed": {"hops": self.hops, "alpha": self.alpha},
                "learned": {"hops": self.hops, "coefficients": {"input": "theta"}},
                "all": {"hops": "all", "alpha": {"input": "alpha"}},
            }[diffusion],
        }
        return Spec.from_dict(values, overrides=self.overrides)


class DiffusionSelfAttention(nn.Module):
    """Self-attention that diffuses. States `[batch, n, hidden_size]` in and out."""

    def __init__(self, config: DiffuserConfig, diffusion: str = "fixed") -> None:
        super().__init__()
        self.diffusion = diffusion
        self.spec = config.spec(diffusion)
        self.heads = config.num_attention_heads
        self.attention_dropout, self.hop_dropout = config.attention_dropout, config.hop_dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        if diffusion == "learned":
            self.theta = nn.Parameter(_first_coefficients(config).repeat(self.heads, 1))
        if diffusion == "all":
            share = (config.alpha - _LEAST_ALPHA) / (1 - _LEAST_ALPHA)
            self.alpha_logit = nn.Parameter(torch.full((self.heads,), share).logit())

    def _inputs(self) -> dict[str, torch.Tensor]:
        """What the hops take at each call; it is f32 whatever the model is."""
        if self.diffusion == "learned":
            return {"theta": self.theta.float()}
        if self.diffusion == "all":
            return {"alpha": _LEAST_ALPHA + (1 - _LEAST_ALPHA) * torch.sigmoid(self.alpha_logit.float())}
        return {}

    def forward(self, states: torch.Tensor, key_lengths: torch.Tensor | None = None) -> torch.Tensor:
        batch, n, _ = states.shape
        # Kernels read heads in place: [batch, heads, n, width] with the strides of [batch, n, heads · width].
        q, k, v = (
            linear(states).view(batch, n, self.heads, -1).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        dropout = None
        if self.training and self.diffusion != "all" and (self.attention_dropout or self.hop_dropout):
            # A seed of torch's generator: torch.manual_seed repeats a training run.
            dropout = Dropout(self.attention_dropout, self.hop_dropout, int(torch.randint(2**62, ())))
        out = attention(q, k, v, self.spec, key_lengths=key_lengths, inputs=self._inputs(), dropout=dropout)
        if self.diffusion == "all":
            # There is no hop after which to drop.
            out = F.dropout(out, self.hop_dropout, self.training)
        return out.transpose(1, 2).reshape(batch, n, -1)


class DiffuserLayer(nn.Module):
    """Attention and a feed-forward network, each added to its input and normalised behind (as BERT does)."""

    def __init__(self, config: DiffuserConfig, diffusion: str = "fixed") -> None:
        super().__init__()
        self.attention = DiffusionSelfAttention(config, diffusion)
        self.attention_output = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, states: torch.Tensor, key_lengths: torch.Tensor | None = None) -> torch.Tensor:
        attended = self.attention_output(self.attention(states, key_lengths))
        states = self.attention_norm(states + self.dropout(attended))
        return self.output_norm(states + self.dropout(self.output(F.gelu(self.intermediate(states)))))


class DiffuserModel(nn.Module):
    """Embeddings and encoder layers.

    Parameters
    ----------
    input_ids : integer Tensor `[batch, n]`
    attention_mask : Tensor `[batch, n]`, optional
        1 for tokens, then 0 for padding, on the right. A kernel is compiled for each length of a sequence, in
        milliseconds: many different lengths are best rounded up to a few.
    token_type_ids : integer Tensor `[batch, n]`, optional

    Returns
    -------
    Tensor `[batch, n, hidden_size]`
    """

    def __init__(self, config: DiffuserConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(DiffuserLayer(config, diffusion) for diffusion in config.layer_diffusions())
        self.apply(lambda module: _initialise(module, config.initializer_range))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        n = input_ids.shape[1]
        if n > self.config.max_position_embeddings:
            raise ShapeError(f"input_ids: {n} tokens; expected at most {self.config.max_position_embeddings}")
        lengths = None if attention_mask is None else _key_lengths(attention_mask, input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(n, device=input_ids.device)
        states = (
            self.token_embeddings(input_ids) + self.position_embeddings(positions) + self.type_embeddings(token_type_ids)
        )
        states = self.dropout(self.norm(states))
        for layer in self.layers:
            states = layer(states, lengths)
        return states


class DiffuserForSequenceClassification(nn.Module):
    """A class for a sequence, from the state of its first token: logits `[batch, num_labels]`."""

    def __init__(self, config: DiffuserConfig) -> None:
        super().__init__()
        self.encoder = DiffuserModel(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        for module in (self.dense, self.classifier):
            _initialise(module, config.initializer_range)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        first = self.encoder(input_ids, attention_mask, token_type_ids)[:, 0]
        return self.classifier(self.dropout(torch.tanh(self.dense(self.dropout(first)))))


class DiffuserForMaskedLM(nn.Module):
    """Tokens behind a mask: logits `[batch, n, vocab_size]`, by the embeddings of the tokens."""

    def __init__(self, config: DiffuserConfig) -> None:
        super().__init__()
        self.encoder = DiffuserModel(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        _initialise(self.dense, config.initializer_range)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        states = self.norm(F.gelu(self.dense(self.encoder(input_ids, attention_mask, token_type_ids))))
        return F.linear(states, self.encoder.token_embeddings.weight, self.bias)


def _first_coefficients(config: DiffuserConfig) -> torch.Tensor:
    """The coefficients `[hops + 1]` of A^k V that learning begins with."""
    if config.learned_start == "one_hop":
        return torch.eye(config.hops + 1)[1]
    kept = (1 - config.alpha) ** torch.arange(config.hops + 1, dtype=torch.float64)
    # What the last hop leaves of V is not restarted.
    return torch.cat([config.alpha * kept[:-1], kept[-1:]]).float()


def _initialise(module: nn.Module, deviation: float) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=deviation)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()


def _key_lengths(mask: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor | None:
    """A padding mask as key lengths `[batch]`."""
    if mask.shape != input_ids.shape:
        raise ShapeError(f"attention_mask: shape {list(mask.shape)}; expected {list(input_ids.shape)}, as input_ids has")
    mask = mask.to(torch.bool)
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ShapeError("attention_mask: padding before a token; expected padding on the right alone")
    return None if bool(mask.all()) else mask.sum(1)
