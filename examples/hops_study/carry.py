"""E1, carry: every position predicts a value that stands at few positions of the sequence.

    python examples/hops_study/carry.py --out hops_study

A sequence of n tokens holds P needles, each a key (of P) and a value (of 8), at positions drawn anew for each sequence. With
P = 1 all other tokens are alike; with P = 4 each asks for one of the keys. Every position predicts the value of the needle
that it asks for (a needle its own). Two layers, width 64, 4 heads, a window of radius 4: one hop carries over 8 tokens, five
hops over 40.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hops import Encoder, Experiment, main

VALUES, RADIUS, BATCH, TESTS = 8, 4, 8, 256
BIN = 8


def sequences(generator: torch.Generator, count: int, n: int, needles: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, values and distances to the needle that holds the value, `[count, n]` each."""
    asked = torch.randint(needles, (count, n), generator=generator)
    places = torch.rand(count, n, generator=generator).argsort(1)[:, :needles]
    values = torch.randint(VALUES, (count, needles), generator=generator)
    asked.scatter_(1, places, torch.arange(needles).expand(count, -1))
    tokens = asked.clone()
    tokens.scatter_(1, places, needles + torch.arange(needles) * VALUES + values)
    distances = (torch.arange(n) - places.gather(1, asked)).abs()
    return tokens, values.gather(1, asked), distances


@dataclasses.dataclass
class Carry(Experiment):
    def model(self, task: dict[str, Any], letter: str, radius: int | None) -> nn.Module:
        n, needles = task["n"], task["needles"]
        pattern = "full" if letter == "f" else {"window": {"radius": radius or (3 * RADIUS if letter == "g" else RADIUS)}}
        return Encoder(letter, pattern, n, tokens=needles * (1 + VALUES), classes=VALUES)

    def batches(self, task: dict[str, Any], seed: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield sequences(generator, BATCH, task["n"], task["needles"])

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        tokens, values, _ = batch
        return nn.functional.cross_entropy(model(tokens).flatten(0, 1), values.flatten())

    def evaluate(self, model: nn.Module, task: dict[str, Any], split: str, last: bool) -> dict[str, Any]:
        generator = torch.Generator().manual_seed({"validation": 10**6, "test": 10**6 + 1}[split])
        tokens, values, distances = sequences(generator, TESTS, task["n"], task["needles"])
        right = torch.cat([model(part).argmax(-1) for part in tokens.split(32)]) == values
        of_bins = [right[distances // BIN == at] for at in range(-(-task["n"] // BIN))]
        means = [float(of.float().mean()) if len(of) else None for of in of_bins]
        return {"score": float(right.float().mean()), "by_distance": means}


def by_distance(axis: Any, lines: list[dict[str, Any]], style: dict[str, Any]) -> None:
    means = [[of for line in lines if (of := line["by_distance"][at]) is not None] for at in range(len(lines[0]["by_distance"]))]
    shown = [(BIN * (at + 0.5), sum(of) / len(of)) for at, of in enumerate(means) if of]
    axis.plot(*zip(*shown, strict=True), **style)
    axis.axhline(1 / VALUES, color="grey", linewidth=0.5)
    axis.set(xlabel="distance to the needle", ylabel="accuracy", ylim=(0, 1.02))


if __name__ == "__main__":
    experiment = Carry(
        name="carry",
        tasks=[{"n": n, "needles": needles} for n in (128, 256) for needles in (1, 4)],
        letters="abcdefg",
        steps=1500,
        every=100,
        rates=(1e-3, 2e-3, 4e-3),
        score="accuracy",
        higher_is_better=True,
        causal=False,
        radii=(4, 6, 8, 12, 16, 24, 32, 48, 64, 96),
    )
    main(experiment, __doc__, by_distance)
