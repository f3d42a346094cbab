"""Training steps beside torch's scaled_dot_product_attention, and what a call from Python costs.

    python python/benches/training.py [--quick]

Both compute forward and backward of the same loss, in turn, in one process, with as many threads. Medians of the
rounds; the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

import hopweave
import hopweave.torch

THREADS = 2


def spec_of(pattern: object) -> hopweave.Spec:
    return hopweave.Spec.from_dict({"name": "bench", "heads": 12, "head_dim": 64, "pattern": pattern})


def step(attention, tensors, grad) -> float:
    """Seconds of a forward and backward pass."""
    q, k, v = (x.detach().requires_grad_() for x in tensors)
    start = time.perf_counter()
    attention(q, k, v).backward(grad)
    return time.perf_counter() - start


def compare(name: str, pattern: object, n: int, rounds: int) -> None:
    spec = spec_of(pattern)
    random = torch.Generator().manual_seed(1)
    tensors = [torch.randn(1, 12, n, 64, generator=random) for _ in range(3)]
    grad = torch.randn(1, 12, n, 64, generator=random)
    mask = None if pattern == "full" else torch.from_numpy(spec.mask(n)[0])

    def dense(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def sparse(q, k, v):
        return hopweave.torch.attention(q, k, v, spec, threads=THREADS)

    with torch.no_grad():
        error = (dense(*tensors) - sparse(*tensors)).abs().max().item()
    step(sparse, tensors, grad)  # compiles
    times = [(step(dense, tensors, grad), step(sparse, tensors, grad)) for _ in range(rounds)]
    theirs, ours = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(f"| {name} | {n} | {theirs:.1f} | {ours:.1f} | {ratio:.1f} | {error:.1e} | {rounds} |", flush=True)


def overhead() -> None:
    """A call so small that its kernel takes a microsecond or two."""
    spec = hopweave.Spec.from_dict({"name": "tiny", "head_dim": 16, "pattern": "full"})
    kernel = hopweave.compile(spec, 16, threads=1)
    arrays = [np.ones((1, 1, 16, 16), dtype=np.float32) for _ in range(4)]
    tensors = [torch.from_numpy(x) for x in arrays]
    learning = [x.clone().requires_grad_() for x in tensors[:3]]

    def train():
        hopweave.torch.attention(*learning, spec, threads=1).backward(tensors[3])

    calls = {
        "kernel(q, k, v), numpy": lambda: kernel(*arrays[:3]),
        "kernel(q, k, v), torch": lambda: kernel(*tensors[:3]),
        "hopweave.attention(q, k, v, spec), numpy": lambda: hopweave.attention(*arrays[:3], spec, threads=1),
        "kernel.backward(q, k, v, grad_out), numpy": lambda: kernel.backward(*arrays),
        "hopweave.torch.attention, forward and backward": train,
    }
    print("\n| call, 16 tokens, one head of 16 | us |\n| --- | --- |")
    for name, call in calls.items():
        for _ in range(50):
            call()
        times = []
        for _ in range(15):
            start = time.perf_counter()
            for _ in range(200):
                call()
            times.append((time.perf_counter() - start) / 200)
        print(f"| {name} | {statistics.median(times) * 1e6:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out 8192 tokens, which take SDPA seconds")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    print(f"torch {torch.__version__}, hopweave {hopweave.__version__}, {THREADS} threads, 12 heads of 64, f32\n")
    print("| pattern | n | SDPA ms | hopweave ms | ratio | distance | rounds |\n| --- | --- | --- | --- | --- | --- | --- |")
    window = {"window": {"radius": 128}}
    compare("window ±128", window, 2048, 9)
    compare("full", "full", 2048, 9)
    compare("causal", "causal", 2048, 9)
    if not quick:
        compare("window ±128", window, 8192, 3)
    overhead()


if __name__ == "__main__":
    main()
