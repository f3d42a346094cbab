"""Attention and training steps beside torch's own threads, in turn in one process.

    python benches/beside_torch.py [--rounds N] [--flex] [--markdown FILE]

Torch's workers wait in a loop for milliseconds after each operation. This measures what that costs a kernel:

- attention alone, and directly after a matmul of torch's, with the threads that `hopweave` uses beside torch and with a pool
  of its own, as it had before it used torch's (`--rayon` within);
- a training step between torch's operations, against the same step in a process with `OMP_WAIT_POLICY=passive`, where
  torch's workers sleep at once;
- with `--flex`, FlexAttention at three block sizes (needs a C++ compiler) and scaled_dot_product_attention.

Everything is taken in turn, round by round; numbers are medians, ratios are medians of the rounds' ratios. The shape is 12 heads
of 64, f32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import hopweave
import hopweave.torch

HEADS, WIDTH = 12, 64


def spec_of(radius: int) -> hopweave.Spec:
    pattern = {"window": {"radius": radius}}
    return hopweave.Spec.from_dict({"name": "bench", "heads": HEADS, "head_dim": WIDTH, "pattern": pattern})


def random(n: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, HEADS, n, WIDTH, generator=generator) for _ in range(count)]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def rest() -> None:
    """Longer than torch's workers wait."""
    time.sleep(0.02)


def on_its_own_pool(call: Callable[[], object]) -> Callable[[], object]:
    """The same call on rayon's threads, as without torch."""

    def run() -> object:
        of_torch = hopweave._threads.of_torch
        hopweave._threads.of_torch = lambda: None
        try:
            return call()
        finally:
            hopweave._threads.of_torch = of_torch

    return run


def in_turn(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender, round by round; each round begins with another one."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names * 3:
        contenders[name]()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(contenders[name]())
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def after_a_matmul(radius: int, rounds: int, n: int = 4096) -> dict[str, list[float]]:
    """Attention alone and after a matmul, on torch's threads and on rayon's."""
    q, k, v = random(n, 3)
    kernel = hopweave.compile(spec_of(radius), n)
    out = torch.empty_like(q)
    left, right = torch.randn(768, 768), torch.randn(768, 768)

    def call() -> object:
        return kernel(q, k, v, out=out)

    def alone(call: Callable[[], object]) -> float:
        rest()
        call()
        return seconds(call)

    def after(call: Callable[[], object]) -> float:
        rest()
        call()
        torch.mm(left, right)
        return seconds(call)

    own = on_its_own_pool(call)
    contenders = {
        "alone": lambda: alone(call),
        "after a matmul": lambda: after(call),
        "own pool, alone": lambda: alone(own),
        "own pool, after a matmul": lambda: after(own),
    }
    return in_turn(contenders, rounds)


def training_step(radius: int, rounds: int, n: int = 2048) -> dict[str, list[float]]:
    """Steps of a layer: projections by torch, attention, the way back."""
    q, k, v, grad = random(n, 4)
    spec = spec_of(radius)
    weights = [torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(4)]

    def step() -> float:
        def work() -> None:
            x = [tensor @ weight for tensor, weight in zip((q, k, v), weights, strict=False)]
            (hopweave.torch.attention(*x, spec) @ weights[3]).backward(grad)

        return seconds(work)

    def attention_alone() -> float:
        x = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        return seconds(lambda: hopweave.torch.attention(*x, spec).backward(grad))

    def on_own(call: Callable[[], float]) -> Callable[[], float]:
        return on_its_own_pool(call)

    contenders = {
        "step": step,
        "attention of a step": attention_alone,
        "own pool, step": on_own(step),
        "own pool, attention of a step": on_own(attention_alone),
    }
    return in_turn(contenders, rounds)


def windows(radius: int, rounds: int, n: int = 4096) -> dict[str, list[float]]:
    """Other ways to compute a window."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = random(n, 3)
    kernel = hopweave.compile(spec_of(radius), n)
    position = torch.arange(n)
    mask = (position[:, None] - position[None, :]).abs() <= radius
    compiled = torch.compile(flex_attention, dynamic=False)

    def within(batch, head, query, key):
        return (query - key).abs() <= radius

    def flex(block: int) -> Callable[[], float]:
        blocks = create_block_mask(within, None, None, n, n, device="cpu", BLOCK_SIZE=block)
        return lambda: seconds(lambda: compiled(q, k, v, block_mask=blocks))

    contenders = {"hopweave": lambda: seconds(lambda: kernel(q, k, v))}
    contenders |= {f"FlexAttention, blocks of {block}": flex(block) for block in (32, 64, 128)}
    dense = torch.nn.functional.scaled_dot_product_attention
    contenders["SDPA"] = lambda: seconds(lambda: dense(q, k, v, attn_mask=mask))
    with torch.no_grad():
        expected = dense(q, k, v, attn_mask=mask)
        assert (kernel(q, k, v) - expected).abs().max() < 1e-5
        return in_turn(contenders, rounds)


def passive(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Training steps in a process in which torch's workers sleep as soon as they have nothing to do."""
    command = [sys.executable, __file__, "--child", "--rounds", str(arguments.rounds)]
    done = subprocess.run(command, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def table(title: str, times: dict[str, list[float]], base: str) -> str:
    lines = [f"\n### {title}\n", f"| | median ms | least | most | to `{base}` |", "| --- | --- | --- | --- | --- |"]
    for name, taken in times.items():
        numbers = [statistics.median(taken), min(taken), max(taken)]
        row = " | ".join(f"{number * 1e3:.2f}" for number in numbers)
        lines.append(f"| {name} | {row} | {ratio(times, name, base):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--flex", action="store_true", help="beside FlexAttention and SDPA too")
    parser.add_argument("--markdown", help="a file to write to as well")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(training_step(128, arguments.rounds)))
        return
    text = [
        f"torch {torch.__version__}, {platform.platform()}, {hopweave.threads()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} at the start, {arguments.rounds} rounds"
    ]
    for radius in (32, 128):
        times = after_a_matmul(radius, arguments.rounds)
        text.append(table(f"Window ±{radius}, 4096 tokens, forward", times, "alone"))
        own = ratio(times, "own pool, after a matmul", "own pool, alone")
        text.append(f"\nOn its own pool, after a matmul to alone: {own:.2f}")
    # Processes take turns: what else runs on the machine changes meanwhile.
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    turns, of_turn = 6, argparse.Namespace(rounds=max(arguments.rounds // 6, 1))
    for _ in range(turns):
        for name, taken in training_step(128, of_turn.rounds).items():
            ours.setdefault(name, []).extend(taken)
        for name, taken in passive(of_turn).items():
            theirs.setdefault(f"passive, {name}", []).extend(taken)
    times = ours | theirs
    text.append(table("Window ±128, 2048 tokens, training", times, "passive, step"))
    attention = ratio(times, "attention of a step", "passive, attention of a step")
    text.append(f"\nAttention of a step, to the same with passive workers: {attention:.2f}")
    if arguments.flex:
        for radius in (32, 128, 512):
            times = windows(radius, max(arguments.rounds // 6, 3))
            text.append(table(f"Window ±{radius}, 4096 tokens, forward", times, "hopweave"))
    for part in text:
        print(part, flush=True)
    if arguments.markdown:
        with open(arguments.markdown, "w", encoding="utf-8") as file:
            file.write("\n".join(text) + "\n")


main()
