"""Neighbors picked at run time, from Python: layouts, lists, and blocks that q and k decide on."""

import numpy as np
import pytest

import hopweave

HEADS, N, WIDTH, BLOCK = 4, 160, 16, 32
BLOCKS = N // BLOCK


def spec(pattern: str) -> hopweave.Spec:
    return hopweave.Spec.from_yaml(f"name: picked\nheads: {HEADS}\nkv_heads: 2\nhead_dim: {WIDTH}\npattern: {pattern}")


def tensors(seed: int = 0):
    random = np.random.default_rng(seed)
    shapes = [(2, HEADS, N, WIDTH), (2, 2, N, WIDTH), (2, 2, N, WIDTH)]
    return [random.standard_normal(shape, dtype=np.float32) for shape in shapes]


def dense(q, k, v, mask):
    """Attention over a mask [batch, heads, m, n], in double precision."""
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = np.where(mask, q.astype(np.float64) @ k.swapaxes(2, 3) / np.sqrt(q.shape[3]), -np.inf)
    most = scores.max(axis=3, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(most), most, 0))
    sums = weights.sum(axis=3, keepdims=True)
    return np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0) @ v


def spread(layout, heads: int = HEADS):
    """A mask of tokens from a layout of blocks."""
    layout = np.broadcast_to(layout, (2, *layout.shape[1:])).astype(bool)
    layout = np.repeat(layout, heads // layout.shape[1], axis=1)
    return layout.repeat(BLOCK, axis=2).repeat(BLOCK, axis=3)


@pytest.mark.parametrize("dtype", [bool, np.uint8])
@pytest.mark.parametrize("axes", [(1, 1), (2, 2), (2, HEADS)])
def test_layouts_are_masks_of_blocks(axes, dtype):
    q, k, v = tensors()
    kernel = hopweave.compile(spec(f"{{blocks: {{block: {BLOCK}, input: picked}}}}"), N)
    layout = np.random.default_rng(1).random((*axes, BLOCKS, BLOCKS)) < 0.4
    out = kernel(q, k, v, inputs={"picked": layout.astype(dtype)})
    assert np.abs(out - dense(q, k, v, spread(layout))).max() < 1e-5


def test_lists_of_blocks_and_of_keys():
    q, k, v = tensors()
    random = np.random.default_rng(2)
    lists = random.integers(-1, BLOCKS, (2, HEADS, BLOCKS, 3), dtype=np.int32)
    layout = np.zeros((2, HEADS, BLOCKS, BLOCKS), bool)
    for place in np.ndindex(2, HEADS, BLOCKS):
        for block in lists[place]:
            if block < 0:
                break
            layout[(*place, block)] = True
    kernel = hopweave.compile(spec(f"{{blocks: {{block: {BLOCK}, input: picked}}}}"), N)
    assert np.abs(kernel(q, k, v, inputs={"picked": lists}) - dense(q, k, v, spread(layout))).max() < 1e-5
    keys = random.integers(0, N, (1, 2, N, 7))
    mask = np.zeros((1, 2, N, N), bool)
    np.put_along_axis(mask, keys, True, axis=3)
    mask = np.broadcast_to(mask, (2, 2, N, N)).repeat(2, axis=1)
    kernel = hopweave.compile(spec("{keys: {input: picked}}"), N)
    assert np.abs(kernel(q, k, v, inputs={"picked": keys}) - dense(q, k, v, mask)).max() < 1e-5


def test_values_compile_nothing():
    q, k, v = tensors()
    kernel = hopweave.compile(spec(f"{{any: [{{window: {{radius: 9}}}}, {{blocks: {{block: {BLOCK}, input: picked}}}}]}}"), N)
    before = hopweave.compilations()
    random = np.random.default_rng(3)
    for _ in range(50):
        kernel(q, k, v, inputs={"picked": random.random((2, HEADS, BLOCKS, BLOCKS)) < 0.3})
    assert 1 <= hopweave.compilations() - before <= 4


def test_select_is_what_top_blocks_uses():
    q, k, v = tensors()
    top = spec(f"{{top_blocks: {{block: {BLOCK}, keep: 2, among: past}}}}")
    layout = hopweave.select(q, k, top)
    assert layout.dtype == bool and layout.shape == (2, HEADS, BLOCKS, BLOCKS)
    means = [x.reshape(*x.shape[:2], BLOCKS, BLOCK, WIDTH).mean(axis=3) for x in (q, k.repeat(2, axis=1))]
    scores = means[0] @ means[1].swapaxes(2, 3)
    for b, h, row in np.ndindex(2, HEADS, BLOCKS):
        others = sorted(range(row), key=lambda block: -scores[b, h, row, block])
        assert set(np.flatnonzero(layout[b, h, row])) == {row, *others[:1]}
    out = hopweave.attention(q, k, v, top)
    assert np.abs(out - dense(q, k, v, spread(layout))).max() < 1e-5


def test_no_gradient_flows_through_the_choice():
    torch = pytest.importorskip("torch")
    import hopweave.torch

    q, k, v = (torch.from_numpy(x).requires_grad_() for x in tensors())
    top = spec(f"{{top_blocks: {{block: {BLOCK}, mass: 0.5}}}}")
    layout = hopweave.select(q.detach(), k.detach(), top)
    given = spec(f"{{blocks: {{block: {BLOCK}, input: picked}}}}")
    outs = [
        hopweave.torch.attention(q, k, v, top),
        hopweave.torch.attention(q, k, v, given, inputs={"picked": layout}),
    ]
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in outs]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_what_does_not_fit_is_refused():
    q, k, v = tensors()
    kernel = hopweave.compile(spec(f"{{blocks: {{block: {BLOCK}, input: picked}}}}"), N)
    lists = np.zeros((1, 1, BLOCKS, 2), np.int32)
    lists[0, 0, 3, 1] = BLOCKS
    with pytest.raises(hopweave.ShapeError, match=f"row 3 has {BLOCKS}; expected 0 to {BLOCKS - 1}"):
        kernel(q, k, v, inputs={"picked": lists})
    with pytest.raises(hopweave.ShapeError, match="picked"):
        kernel(q, k, v)
    with pytest.raises(hopweave.ShapeError, match=r"batch or 1, heads or kv_heads or 1"):
        kernel(q, k, v, inputs={"picked": np.ones((1, 3, BLOCKS, BLOCKS), bool)})
    with pytest.raises(hopweave.UnsupportedError, match="top_blocks"):
        hopweave.select(q, k, spec("causal"))
