"""The package with numpy alone."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import HOPS, PATTERNS, WINDOW, dense, tensors

import hopweave


def test_importing_needs_no_torch():
    code = "import sys, hopweave; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_pattern_file_loads_and_has_a_mask():
    files = sorted(PATTERNS.glob("*.yaml"))
    assert len(files) >= 24
    for path in files:
        spec = hopweave.Spec.load(path)
        try:
            mask = spec.mask(64)
        except hopweave.SpecError:
            mask = spec.mask(784)  # a grid has its own number of tokens
        except hopweave.UnsupportedError as error:
            assert "segment ids" in str(error)
            continue
        assert mask.dtype == bool and mask.shape[0] == spec.heads and mask.any()


def test_specs_from_text_dict_and_file_are_the_same(tmp_path):
    path = tmp_path / "window.yaml"
    path.write_text(WINDOW)
    values = {
        "name": "window",
        "heads": 4,
        "kv_heads": np.int64(2),
        "head_dim": 16,
        "value_dim": 24,
        "pattern": {"any": [{"window": {"radius": 20}}, {"global": {"tokens": {"first": 3}}}]},
    }
    specs = [hopweave.Spec.load(path), hopweave.Spec.from_yaml(WINDOW), hopweave.Spec.from_dict(values)]
    assert specs[0] == specs[1] == specs[2] and len(set(specs)) == 1
    assert pickle.loads(pickle.dumps(specs[0])) == copy.copy(specs[0]) == specs[0]
    changed = hopweave.Spec.from_yaml(WINDOW, overrides={"diffusion.hops": 3, "heads": 2})
    assert changed.hops == 3 and changed.heads == 2 and changed != specs[0]
    assert hopweave.Spec.from_yaml(specs[0].to_yaml()) == specs[0]
    assert "window" in repr(specs[0])


def test_a_window_is_what_the_mask_says(window):
    mask = window.mask(100, 100)
    q, k = np.arange(100)[:, None], np.arange(100)[None, :]
    assert (mask == ((abs(q - k) <= 20) | (k < 3) | (q < 3))).all()


@pytest.mark.parametrize(("text", "count", "alpha"), [(WINDOW, 1, 0.0), (HOPS, 3, 0.2)])
@pytest.mark.parametrize("isa", ["auto", "portable"])
def test_kernels_compute_attention(text, count, alpha, isa):
    spec = hopweave.Spec.from_yaml(text)
    q, k, v, _ = tensors(spec, 131)
    kernel = hopweave.compile(spec, q_len=131, kv_len=131, isa=isa, threads=2)
    out, lse = kernel(q, k, v, return_lse=True)
    assert out.dtype == np.float32 and lse.shape == q.shape[:3]
    np.testing.assert_allclose(out, dense(spec, q, k, v, count, alpha), atol=3e-6)
    np.testing.assert_array_equal(hopweave.attention(q, k, v, spec, isa=isa, threads=2), out)
    into = np.empty_like(out)
    assert kernel(q, k, v, out=into) is into
    np.testing.assert_array_equal(into, out)
    assert spec.name in repr(kernel) and "strategy" in kernel.explain()


def test_views_are_read_in_place(window):
    q, k, v, _ = tensors(window, 90)
    out = hopweave.attention(q, k, v, window)
    # [batch, length, heads, width] seen as [batch, heads, length, width], rows reversed twice, batch strides.
    turned = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in (q, k, v)]
    assert not turned[0].flags.c_contiguous
    np.testing.assert_array_equal(hopweave.attention(*turned, window), out)
    reversed_rows = q[:, :, ::-1].copy()[:, :, ::-1]
    np.testing.assert_array_equal(hopweave.attention(reversed_rows, k, v, window), out)


def test_gradients_are_those_of_central_differences(hops):
    n = 40
    q, k, v, grad = tensors(hops, n, batch=1)
    kernel = hopweave.compile(hops, n)
    grads = kernel.backward(q, k, v, grad)
    out, lse = kernel(q, k, v, return_lse=True)
    for given, fresh in zip(kernel.backward(q, k, v, grad, out=out, lse=lse), grads, strict=True):
        np.testing.assert_allclose(given, fresh, atol=2e-6)
    random, step = np.random.default_rng(1), 1e-5
    for index, found in enumerate(grads):
        inputs = [x.astype(np.float64) for x in (q, k, v)]
        assert found.shape == inputs[index].shape
        direction = random.standard_normal(inputs[index].shape)

        def loss(sign):
            moved = list(inputs)
            moved[index] = moved[index] + sign * step * direction
            return (dense(hops, *moved, hops=3, alpha=0.2) * grad).sum()

        expected = (loss(1) - loss(-1)) / (2 * step)
        assert (found * direction).sum() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_key_lengths_hide_padding(window):
    q, k, v, grad = tensors(window, 70)
    lengths = np.array([70, 31])
    k[1, :, 31:] = np.nan
    v[1, :, 31:] = np.nan
    kernel = hopweave.compile(window, 70)
    out = kernel(q, k, v, key_lengths=lengths)
    short = hopweave.compile(window, 70, 31)
    assert np.isfinite(out).all() and short.kv_len == 31
    dq, dk, dv = kernel.backward(q, k, v, grad, key_lengths=lengths)
    assert np.isfinite(dq).all() and (dk[1, :, 31:] == 0).all() and (dv[1, :, 31:] == 0).all()


def test_inputs_reach_score_mods_and_segments():
    spec = hopweave.Spec.from_dict({
        "name": "biased",
        "heads": 2,
        "head_dim": 8,
        "inputs": {"rel": {"shape": ["heads", "2*n - 1"]}},
        "pattern": {"all": ["causal", {"segments": {"input": "ids"}}]},
        "score": {"mods": [{"bias": {"input": "rel", "index": ["h", "q - k + n - 1"]}}]},
    })
    n = 50
    q, k, v, _ = tensors(spec, n)
    ids = np.zeros((2, n), dtype=np.int64)
    ids[:, 20:] = 1
    rel = np.random.default_rng(3).standard_normal((2, 2 * n - 1)).astype(np.float32)
    out = hopweave.attention(q, k, v, spec, inputs={"rel": rel, "ids": ids})
    np.testing.assert_allclose(out[:, :, 20], v[:, :, 20], atol=1e-6)
    with pytest.raises(hopweave.ShapeError, match="rel"):
        hopweave.attention(q, k, v, spec, inputs={"ids": ids})


def test_dropout_is_a_seed(window):
    q, k, v, grad = tensors(window, 64)
    kernel = hopweave.compile(window, 64)
    dropout = hopweave.Dropout(attention=0.3, hop=0.2, seed=7)
    first, again = kernel(q, k, v, dropout=dropout), kernel(q, k, v, dropout=dropout)
    np.testing.assert_array_equal(first, again)
    assert (kernel(q, k, v, dropout=hopweave.Dropout(0.3, 0.2, seed=8)) != first).any()
    assert abs((first == 0).mean() - 0.2) < 0.02
    assert kernel.backward(q, k, v, grad, dropout=dropout)[2].shape == v.shape
    with pytest.raises(ValueError, match="hop rate is 1"):
        kernel(q, k, v, dropout=hopweave.Dropout(0.0, 1.0))


def test_many_threads_share_a_kernel(hops):
    q, k, v, grad = tensors(hops, 120)
    expected = hopweave.attention(q, k, v, hops)
    kernel = hopweave.compile(hops, 120, threads=2)
    of_one = kernel.backward(q, k, v, grad)
    failures = []

    def work():
        for _ in range(5):
            if not (kernel(q, k, v) == expected).all():
                failures.append("forward")
            if not all((a == b).all() for a, b in zip(kernel.backward(q, k, v, grad), of_one, strict=True)):
                failures.append("backward")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("spoil", ["dtype", "shape", "length", "stride", "kind", "list", "axes"])
def test_wrong_tensors_are_named(window, spoil):
    q, k, v, _ = tensors(window, 64)
    kernel = hopweave.compile(window, 64)
    cases = {
        "dtype": (v.astype(np.float64), hopweave.ShapeError, r"v: a tensor of float64; expected float32"),
        "shape": (v[..., :20], hopweave.ShapeError, r"v: expected shape .*24.*found.*20"),
        "length": (v[:, :, :60], hopweave.ShapeError, r"v: expected shape .*64.*found.*60"),
        "stride": (np.repeat(v, 2, axis=-1)[..., ::2], hopweave.ShapeError, r"v: strides .*expected a last axis with stride 1"),
        "kind": ("v", TypeError, r"v: a str; expected a numpy array or a torch tensor"),
        "list": (v.tolist(), TypeError, r"v: a list; expected"),
        "axes": (v[0], hopweave.ShapeError, r"v: expected shape 4 axes, found"),
    }
    wrong, error, message = cases[spoil]
    with pytest.raises(error, match=message):
        kernel(q, k, wrong)


def test_outputs_may_not_overlap(window):
    q, k, _, _ = tensors(window, 64)
    spec = hopweave.Spec.from_yaml(WINDOW, overrides={"value_dim": 16})
    kernel = hopweave.compile(spec, 64)
    with pytest.raises(hopweave.ShapeError, match="out: overlaps q; expected memory of its own"):
        kernel(q, k, k, out=q)


def test_wrong_specs_show_the_place():
    with pytest.raises(hopweave.SpecError) as caught:
        hopweave.Spec.from_yaml("name: x\nhead_dim: 8\npattern: {windw: {radius: 3}}\n")
    text = str(caught.value)
    assert "<spec>:3:11" in text and "^" in text and "window" in text
    assert isinstance(caught.value, ValueError)
    with pytest.raises(hopweave.SpecError, match="<dict>"):
        hopweave.Spec.from_dict({"name": "x", "head_dim": 0, "pattern": "full"})
    with pytest.raises(hopweave.SpecError, match="set"):
        hopweave.Spec.from_dict({"name": {1, 2}})
    with pytest.raises(OSError, match=r"no-such\.yaml"):
        hopweave.Spec.load("no-such.yaml")


def test_specs_of_others_are_limited(tmp_path):
    path = tmp_path / "random.yaml"
    path.write_text("name: x\nhead_dim: 8\npattern: {random: {keys_per_query: 8, seed: 1}}\n")
    spec = hopweave.Spec.load(path, limits={"edges": 1000})
    assert spec.mask(100).sum() == 800
    with pytest.raises(hopweave.SpecError, match="the limit `edges`"):
        spec.mask(200)
    with pytest.raises(hopweave.SpecError, match="the limit `edges`"):
        hopweave.compile(spec, 200)
    with pytest.raises(hopweave.UnsupportedError, match="the limit `code`"):
        limited = hopweave.Spec.from_yaml(path.read_text(), limits={"code": "64"})
        hopweave.compile(limited, 64)(*(np.zeros((1, 1, 64, 8), np.float32) for _ in range(3)))
    with pytest.raises(hopweave.UnsupportedError, match="the limit `text`"):
        hopweave.Spec.load(path, limits={"text": 10})
    with pytest.raises(ValueError, match="no limit is called `edge`"):
        hopweave.Spec.load(path, limits={"edge": 10})


def test_errors_of_a_spec_come_together():
    with pytest.raises(hopweave.SpecError) as caught:
        hopweave.Spec.from_yaml("name: x\nhead_dim: 0\npattern: {any: [casual, {sink: -1}]}\n")
    assert [f"<spec>:{place}" in str(caught.value) for place in ("2:11", "3:17", "3:32")] == [True] * 3


def test_what_cannot_be_served_is_refused(window):
    with pytest.raises(hopweave.UnsupportedError, match="sse9"):
        hopweave.compile(window, 64, isa="sse9")
    with pytest.raises(hopweave.UnsupportedError, match="strategy"):
        hopweave.compile(window, 64, strategy="fast")
    with pytest.raises(hopweave.UnsupportedError, match="cells"):
        window.mask(1_000_000)
    with pytest.raises(TypeError, match=r"spec: a str; expected a hopweave\.Spec"):
        hopweave.compile("window", 64)
    with pytest.raises(MemoryError, match="limit"):
        hopweave.compile(window, 4096, memory_limit=1000)


def test_empty_batches_are_empty(window):
    q, k, v, _ = tensors(window, 64)
    assert hopweave.attention(q[:0], k[:0], v[:0], window).shape == (0, 4, 64, 24)


def test_half_precision_is_numpys():
    spec = hopweave.Spec.from_yaml(WINDOW, overrides={"dtype": "f16"})
    q, k, v, grad = (x.astype(np.float16) for x in tensors(spec, 64))
    out = hopweave.attention(q, k, v, spec)
    assert out.dtype == np.float16
    np.testing.assert_allclose(out.astype(np.float64), dense(spec, q, k, v), atol=2e-3)
    dq, _, _ = hopweave.compile(spec, 64).backward(q, k, v, grad)
    assert dq.dtype == np.float16
