"""What the tests share: specs, random tensors, dense attention in f64."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import hopweave

PATTERNS = pathlib.Path(__file__).resolve().parents[2] / "patterns"

WINDOW = """
name: window
heads: 4
kv_heads: 2
head_dim: 16
value_dim: 24
pattern:
  any:
    - window: {radius: 20}
    - global: {tokens: {first: 3}}
"""

HOPS = WINDOW + "diffusion: {hops: 3, alpha: 0.2}\n"


def tensors(spec: hopweave.Spec, n: int, batch: int = 2, seed: int = 0, kv_len: int | None = None) -> list[np.ndarray]:
    """q, k, v and a gradient of the output, f32."""
    random = np.random.default_rng(seed)
    kv_len = n if kv_len is None else kv_len
    shapes = [
        (batch, spec.heads, n, spec.head_dim),
        (batch, spec.kv_heads, kv_len, spec.head_dim),
        (batch, spec.kv_heads, kv_len, spec.value_dim),
        (batch, spec.heads, n, spec.value_dim),
    ]
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def dense(spec: hopweave.Spec, q, k, v, hops: int = 1, alpha: float = 0.0) -> np.ndarray:
    """Attention by the definition, in f64."""
    mask = spec.mask(q.shape[2], k.shape[2])
    group = spec.heads // spec.kv_heads
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.where(mask[None], q @ k.swapaxes(-1, -2) / np.sqrt(spec.head_dim), -np.inf)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    sums = weights.sum(-1, keepdims=True)
    weights = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0)
    z = v
    for _ in range(hops):
        z = (1 - alpha) * (weights @ z) + alpha * v
    return z


@pytest.fixture
def window() -> hopweave.Spec:
    return hopweave.Spec.from_yaml(WINDOW)


@pytest.fixture
def hops() -> hopweave.Spec:
    return hopweave.Spec.from_yaml(HOPS)
