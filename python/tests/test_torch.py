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


FORMS = [
    ("{hops: 3, alpha: {input: a}}", [4]),
    ("{hops: 2, alpha: {input: a}}", [1]),
    ("{coefficients: {input: a}, hops: 2}", [4, 3]),
    ("{hops: all, alpha: {input: a}}", [4]),
]


def by_definition(spec, form, q, k, v, a):
    """Hops whose factors come with the call, in f64, by autograd; `all` over a causal mask."""
    n = q.shape[2]
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    mask = torch.from_numpy(spec.mask(n, n))
    weights = torch.softmax((q @ k.transpose(-1, -2) / np.sqrt(spec.head_dim)).masked_fill(~mask, -torch.inf), -1)
    if "coefficients" in form:
        powers = [v]
        for _ in range(2):
            powers.append(weights @ powers[-1])
        return sum(a[:, j, None, None] * power for j, power in enumerate(powers))
    a = a[:, None, None]
    if "all" in form:
        return torch.linalg.solve(torch.eye(n) - (1 - a) * weights, a * v)
    z = v
    for _ in range(spec.hops):
        z = (1 - a) * (weights @ z) + a * v
    return z


@pytest.mark.parametrize(("form", "shape"), FORMS)
def test_factors_of_hops_have_gradients(form, shape):
    pattern = "causal" if "all" in form else "{window: {radius: 9}}"
    text = f"{{name: x, heads: 4, kv_heads: 2, head_dim: 16, value_dim: 24, pattern: {pattern}, diffusion: {form}}}"
    spec = hopweave.Spec.from_yaml(text)
    q, k, v, grad = inputs(spec, 77)
    a = 0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(2))
    ours = [x.clone().requires_grad_() for x in (q, k, v, a)]
    theirs = [x.double().requires_grad_() for x in (q, k, v, a)]
    out = hopweave.torch.attention(*ours[:3], spec, inputs={"a": ours[3]})
    expected = by_definition(spec, form, *theirs)
    torch.testing.assert_close(out.double(), expected, atol=5e-6, rtol=0)
    assert torch.equal(hopweave.attention(q, k, v, spec, inputs={"a": a}), out)
    out.backward(grad)
    expected.backward(grad.double())
    assert ours[3].grad.shape == a.shape
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, atol=5e-5, rtol=1e-5)


def test_a_parameter_of_the_hops_trains():
    # The target is made with other coefficients of the same hops.
    spec = hopweave.Spec.from_yaml(WINDOW + "diffusion: {coefficients: {input: theta}, hops: 2}\n")
    q, k, v, _ = inputs(spec, 40)
    wanted = torch.tensor([[0.5, 0.25, 0.25]]).repeat(4, 1)
    with torch.no_grad():
        target = hopweave.torch.attention(q, k, v, spec, inputs={"theta": wanted})
    theta = torch.nn.Parameter(torch.tensor([[0.0, 1.0, 0.0]]).repeat(4, 1))
    optimizer = torch.optim.LBFGS([theta], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (hopweave.torch.attention(q, k, v, spec, inputs={"theta": theta}) - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(theta.detach(), wanted, atol=1e-3, rtol=0)


def test_wrong_factors_are_named_with_their_head():
    spec = hopweave.Spec.from_yaml(WINDOW + "diffusion: {hops: 2, alpha: {input: a}}\n")
    q, k, v, _ = inputs(spec, 40)
    for a, message in (
        (torch.tensor([0.1, 0.2, 1.5, 0.3]), "input `a`.*1.5 for head 2; expected 0 to 1"),
        (torch.tensor([0.1, float("nan"), 0.5, 0.3]), "input `a`.*NaN for head 1"),
        (torch.full((3,), 0.1), r"input `a`.*expected shape \[4\] or \[1\]"),
    ):
        with pytest.raises(hopweave.ShapeError, match=message):
            hopweave.torch.attention(q, k, v, spec, inputs={"a": a})
    with pytest.raises(hopweave.ShapeError, match="input `a`.*no tensor"):
        hopweave.torch.attention(q, k, v, spec)


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
