"""The package with torch."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import HOPS, WINDOW, tensors

torch = pytest.importorskip("torch")

import hopweave
import hopweave.torch


def dense(spec, q, k, v, hops=1, alpha=0.0, bias=None):
    """Attention by the definition, in f64, by autograd."""
    mask = torch.from_numpy(spec.mask(q.shape[2], k.shape[2]))
    group = spec.heads // spec.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) / np.sqrt(spec.head_dim)
    if bias is not None:
        scores = scores + bias
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
    z = v
    for _ in range(hops):
        z = (1 - alpha) * (weights @ z) + alpha * v
    return z


def inputs(spec, n, batch=2, dtype=torch.float32):
    return [torch.from_numpy(x).to(dtype) for x in tensors(spec, n, batch)]


@pytest.mark.parametrize(("text", "hops", "alpha"), [(WINDOW, 1, 0.0), (HOPS, 3, 0.2)])
def test_gradients_are_those_of_dense_attention(text, hops, alpha):
    spec = hopweave.Spec.from_yaml(text)
    q, k, v, grad = inputs(spec, 77)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = [x.double().requires_grad_() for x in (q, k, v)]
    out = hopweave.torch.attention(*ours, spec)
    expected = dense(spec, *theirs, hops, alpha)
    torch.testing.assert_close(out.double(), expected, atol=3e-6, rtol=0)
    out.backward(grad)
    expected.backward(grad.double())
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, atol=2e-5, rtol=0)


def test_kernels_take_torch_tensors(window):
    q, k, v, _ = inputs(window, 64)
    out, lse = hopweave.attention(q, k, v, window, return_lse=True)
    assert isinstance(out, torch.Tensor) and isinstance(lse, torch.Tensor)
    same = hopweave.attention(q.numpy(), k.numpy(), v.numpy(), window)
    np.testing.assert_array_equal(out.numpy(), same)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(hopweave.attention(*turned, window), out, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_sixteen_bits(name):
    spec = hopweave.Spec.from_yaml(WINDOW, overrides={"dtype": name})
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[name]
    q, k, v, grad = inputs(spec, 64, dtype=dtype)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = [x.double().requires_grad_() for x in (q, k, v)]
    out = hopweave.torch.attention(*ours, spec)
    assert out.dtype is dtype
    expected = dense(spec, *theirs)
    out.backward(grad)
    expected.backward(grad.double())
    tolerance = 2e-2 if name == "bf16" else 3e-3
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, atol=tolerance, rtol=tolerance)


def test_the_operator_keeps_torchs_rules(hops):
    q, k, v, _ = (x.requires_grad_() for x in inputs(hops, 20, batch=1))
    lengths = torch.tensor([15])
    for key_lengths, rates in ((None, (0.0, 0.0)), (lengths, (0.1, 0.2))):
        arguments = (q, k, v, hops.to_yaml(), key_lengths, [], [], "", *rates, 3, "auto", 0)
        torch.library.opcheck(torch.ops.hopweave.attention.default, arguments)


@pytest.mark.filterwarnings("ignore:Input #")
def test_gradcheck(hops):
    # f32 inputs: differences over a step of 1e-2 are good to some 1e-3.
    q, k, v, _ = (x.requires_grad_() for x in inputs(hops, 12, batch=1))
    assert torch.autograd.gradcheck(
        lambda q, k, v: hopweave.torch.attention(q, k, v, hops), (q, k, v), eps=1e-2, atol=5e-3, rtol=5e-2
    )


def test_compiled_models_call_the_operator(window):
    q, k, v, _ = inputs(window, 64)

    def model(q, k, v):
        return hopweave.torch.attention(q * 2, k, v, window).sum()

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    ours = [x.clone().requires_grad_() for x in (q, k, v)]
    theirs = [x.clone().requires_grad_() for x in (q, k, v)]
    compiled(*ours).backward()
    model(*theirs).backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_inputs_of_score_mods_have_gradients():
    spec = hopweave.Spec.from_dict({
        "name": "biased",
        "heads": 2,
        "head_dim": 8,
        "inputs": {"rel": {"shape": ["heads", "2*n - 1"]}},
        "pattern": {"window": {"radius": 9}},
        "score": {"mods": [{"bias": {"input": "rel", "index": ["h", "q - k + n - 1"]}}]},
    })
    n = 33
    q, k, v, grad = inputs(spec, n)
    rel = torch.randn(2, 2 * n - 1, generator=torch.Generator().manual_seed(1))
    ours = [x.clone().requires_grad_() for x in (q, k, v, rel)]
    theirs = [x.double().requires_grad_() for x in (q, k, v, rel)]
    hopweave.torch.attention(*ours[:3], spec, inputs={"rel": ours[3]}).backward(grad)
    at = torch.arange(n)[:, None] - torch.arange(n)[None, :] + n - 1
    dense(spec, *theirs[:3], bias=theirs[3][:, at]).backward(grad.double())
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, atol=2e-5, rtol=0)


def test_dropout_is_the_same_backward(hops):
    # The output is linear in v, so that its gradient is exact: <grad, out(v)> = <dv, v>.
    q, k, v, grad = inputs(hops, 40)
    v.requires_grad_()
    dropout = hopweave.Dropout(attention=0.2, hop=0.1, seed=2**63 + 5)
    out = hopweave.torch.attention(q, k, v, hops, dropout=dropout)
    out.backward(grad)
    torch.testing.assert_close((v.grad * v).sum(), (grad * out).sum(), atol=1e-3, rtol=1e-4)


def test_wrong_tensors_are_named(window):
    q, k, v, _ = inputs(window, 64)
    attention = hopweave.torch.attention
    with pytest.raises(hopweave.ShapeError, match=r"k: a tensor of float64; expected float32"):
        attention(q, k.double(), v, window)
    with pytest.raises(hopweave.ShapeError, match=r"v: shape \[2, 2, 64\]; expected \[batch, heads, length, width\]"):
        attention(q, k, v[..., 0], window)
    with pytest.raises(hopweave.ShapeError, match=r"k: .*batch"):
        attention(q, k[:1], v, window)
    with pytest.raises(TypeError, match="v: a numpy array; expected a torch tensor, as q is"):
        hopweave.attention(q, k, v.numpy(), window)
    with pytest.raises(hopweave.ShapeError, match=r"q: a tensor on meta; expected one on the CPU"):
        hopweave.attention(q.to("meta"), k, v, window)
    # torch itself lets no integers have gradients; ids among the inputs get none.
    with pytest.raises(RuntimeError, match="floating point"):
        torch.zeros(2, 64, dtype=torch.int32).requires_grad_()
    fake = attention(q.to("meta"), k.to("meta"), v.to("meta"), window)
    assert fake.shape == (2, 4, 64, 24) and fake.device.type == "meta"
