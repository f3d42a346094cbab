"""Attention over processes on this machine, against that of one process."""

from __future__ import annotations

import os
import time

import pytest
from conftest import HOPS, PATTERNS, WINDOW, tensors

import hopweave

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
mp = pytest.importorskip("torch.multiprocessing")

import datetime  # noqa: E402

import hopweave.distributed as hd  # noqa: E402
import hopweave.torch  # noqa: E402

# A square, for the grids among the patterns; its last block is short.
N = 729


def _start(rank: int, world: int, file: str, work, seconds: float, *rest) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world, timeout=timeout)
    work(rank, world, *rest)


def _run(tmp_path, world: int, work, *rest, seconds: float = 60, limit: float = 240) -> None:
    """Runs `work(rank, world, *rest)` in processes of its own, which end by themselves or are ended."""
    file = str(tmp_path / f"store-{time.monotonic_ns()}")
    context = mp.spawn(_start, (world, file, work, seconds, *rest), nprocs=world, join=False)
    end = time.monotonic() + limit
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f"processes still run after {limit} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


def _counted(patch):
    """Counts the bytes that `torch.distributed` is asked to receive."""
    counted = [0]
    plain = dist.batch_isend_irecv

    def count(ops):
        counted[0] += sum(op.tensor.numel() * op.tensor.element_size() for op in ops if op.op is dist.irecv)
        return plain(ops)

    patch.setattr(dist, "batch_isend_irecv", count)
    return counted


def _compare(rank, world, spec, n, inputs=None, batch=1) -> int:
    """One call and its gradients beside those of one process; the bytes that were received."""
    q, k, v, grad = (torch.from_numpy(x) for x in tensors(spec, n, batch=batch, seed=3))
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    shared = {name: x.clone().requires_grad_() for name, x in (inputs or {}).items()}
    expected = hopweave.torch.attention(*whole, spec, inputs=shared)
    expected.backward(grad)
    rows = hd.plan(spec, n, world).slices[rank]
    own = slice(rows.start, rows.stop)
    local = [x[:, :, own].clone().requires_grad_() for x in (q, k, v)]
    given = {name: x.clone().requires_grad_() for name, x in (inputs or {}).items()}
    with pytest.MonkeyPatch.context() as patch:
        counted = _counted(patch)
        out = hd.attention(*local, spec, n=n, inputs=given)
        received = counted[0]
    out.backward(grad[:, :, own])
    close = {"rtol": 2e-4, "atol": 2e-5}
    torch.testing.assert_close(out, expected[:, :, own], msg=lambda m: f"{spec.name}, out: {m}", **close)
    for name, mine, all_rows in zip("qkv", local, whole, strict=True):
        where = f"{spec.name}, process {rank} of {world}, gradient of {name}"
        torch.testing.assert_close(mine.grad, all_rows.grad[:, :, own], msg=lambda m: f"{where}: {m}", **close)
    for name in given:
        torch.testing.assert_close(given[name].grad, shared[name].grad, rtol=1e-3, atol=1e-4)
    return received


def _bytes_agree(received, spec, n, world, batch=1) -> None:
    most = torch.tensor([received])
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    assert int(most) == batch * hd.plan(spec, n, world).bytes, spec.name


def _patterns(rank, world, names):
    for name in names:
        spec = hopweave.Spec.load(PATTERNS / name)
        _bytes_agree(_compare(rank, world, spec, N), spec, N, world)


NAMES = sorted(path.name for path in PATTERNS.glob("*.yaml"))


@pytest.mark.parametrize("world", [2, 3])
def test_every_pattern_file_is_as_in_one_process(tmp_path, world):
    assert len(NAMES) > 20
    _run(tmp_path, world, _patterns, NAMES)


FORMS = {
    "heat": "diffusion: {heat: 2.0, hops: 3}\n",
    "coefficients": "diffusion: {coefficients: [0.5, 0.0, 0.25]}\n",
    "tolerance": "diffusion: {alpha: 0.6, tolerance: 0.01}\n",
    "all": "diffusion: {hops: all, alpha: 0.7, tolerance: 0.001}\n",
    "own": "diffusion: {hops: [{}, {pattern: {window: {radius: 90}}}, {}], alpha: 0.2}\n",
}


def _forms(rank, world):
    for n in (N, 64, 100):
        for text in (WINDOW, HOPS):
            spec = hopweave.Spec.from_yaml(text)
            _bytes_agree(_compare(rank, world, spec, n, batch=2), spec, n, world, batch=2)
    for form in FORMS.values():
        spec = hopweave.Spec.from_yaml(WINDOW + form)
        _bytes_agree(_compare(rank, world, spec, 300), spec, 300, world)
    alpha = hopweave.Spec.from_yaml(WINDOW + "diffusion: {hops: 2, alpha: {input: a}}\n")
    _compare(rank, world, alpha, 300, {"a": torch.tensor([0.1, 0.2, 0.3, 0.4])})
    theta = hopweave.Spec.from_yaml(WINDOW + "diffusion: {coefficients: {input: t}, hops: 2}\n")
    _compare(rank, world, theta, 300, {"t": torch.linspace(-1, 1, 12).view(4, 3)})
    bias = "inputs: {rel: {shape: [heads, '2*n - 1']}}\nscore: {mods: [{bias: {input: rel, index: [h, 'q - k + n - 1']}}]}\n"
    _compare(rank, world, hopweave.Spec.from_yaml(WINDOW + bias), 300, {"rel": torch.linspace(-1, 1, 4 * 599).view(4, 599)})


@pytest.mark.parametrize("world", [1, 2, 4])
def test_forms_of_hops_inputs_and_short_sequences(tmp_path, world):
    _run(tmp_path, world, _forms)


def _wrong(rank, world):
    spec = hopweave.Spec.from_yaml(WINDOW)
    q, k, v = (torch.zeros(1, h, 64, w) for h, w in ((4, 16), (2, 16), (2, 24)))
    # 164 rows are three blocks of 64, of which the first process should have two.
    with pytest.raises(hopweave.ShapeError, match="process 0 of 2 has 64 rows; expected 128"):
        rows = 64 if rank == 0 else 100
        hd.attention(*(torch.zeros(1, x.shape[1], rows, x.shape[3]) for x in (q, k, v)), spec)
    with pytest.raises(hopweave.ShapeError, match="k: shape"):
        hd.attention(q, q, v, spec, n=128)


def test_slices_that_do_not_fit_are_named(tmp_path):
    _run(tmp_path, 2, _wrong)


def _one_dies(rank, world, folder):
    spec = hopweave.Spec.from_yaml(WINDOW)
    rows = hd.plan(spec, N, world).slices[rank]
    q, k, v = (torch.zeros(1, h, len(rows), w) for h, w in ((4, 16), (2, 16), (2, 24)))
    hd.attention(q, k, v, spec, n=N)
    if rank == 1:
        os._exit(0)
    begin = time.monotonic()
    try:
        for _ in range(3):
            hd.attention(q, k, v, spec, n=N)
    except RuntimeError as error:
        with open(os.path.join(folder, f"ended-{rank}"), "w") as file:
            file.write(f"{time.monotonic() - begin} {error}")
    # Without waiting for those that are gone.
    os._exit(0)


def test_a_process_that_dies_ends_the_others_within_the_timeout(tmp_path):
    _run(tmp_path, 3, _one_dies, str(tmp_path), seconds=15, limit=90)
    for rank in (0, 2):
        seconds, message = (tmp_path / f"ended-{rank}").read_text().split(" ", 1)
        assert float(seconds) < 30
        assert "expected all processes of the group to be alive" in message


def test_plans_say_what_moves():
    text = "name: w\nheads: 8\nhead_dim: 64\npattern: {window: {radius: 128}}\n"
    plan = hd.plan(hopweave.Spec.from_yaml(text), 8192, 8)
    # Two halos of 128 rows of K and V.
    assert plan.bytes == 2 * 128 * 2 * 8 * 64 * 4
    assert plan.all_gather_bytes == 7 * 1024 * 2 * 8 * 64 * 4
    assert plan.rounds == 1 and "8 processes, 8192 tokens" in plan.text()
    assert "every process reads every row" in hd.plan(hopweave.Spec.load(PATTERNS / "full.yaml"), 512, 4).text()
    endless = hopweave.Spec.from_yaml("name: w\nhead_dim: 8\npattern: causal\ndiffusion: {hops: all, alpha: 0.1}\n")
    with pytest.raises(hopweave.UnsupportedError, match="causal pattern over many processes"):
        hd.plan(endless, 512, 2)
