"""E3, next pixel: every pixel of Fashion-MNIST from those before it, row by row.

    apt-get install dataset-fashion-mnist
    python examples/hops_study/pixels.py --out hops_study

784 tokens, causal, two layers, width 64, 4 heads, radius 6: one hop sees twelve pixels behind over both layers, five hops 60,
two rows. Fashion-MNIST: Xiao, Rasul and Vollgraf 2017.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hops import Encoder, Experiment, main

SIDE, RADIUS, BATCH, TESTS = 28, 6, 8, 128
START = 256


@functools.cache
def images(data: str, name: str) -> torch.Tensor:
    """Pixels `[count, 784]` of an idx file, uint8."""
    path = pathlib.Path(data) / f"{name}-images-idx3-ubyte.gz"
    if not path.exists():
        raise SystemExit(f"{path}: no such file; apt-get install dataset-fashion-mnist, or --data FOLDER")
    raw = bytearray(gzip.decompress(path.read_bytes()))
    sizes = [int.from_bytes(raw[at : at + 4], "big") for at in (0, 4, 8, 12)]
    if sizes[0] != 2051 or sizes[2:] != [SIDE, SIDE] or len(raw) != 16 + sizes[1] * SIDE * SIDE:
        raise SystemExit(f"{path}: not an idx file of {SIDE} × {SIDE} images")
    return torch.frombuffer(raw, dtype=torch.uint8, offset=16).view(sizes[1], -1)


def bits(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Mean bits of a pixel. The token at a place is the pixel before it."""
    pixels = pixels.long()
    before = torch.cat([torch.full_like(pixels[:, :1], START), pixels[:, :-1]], 1)
    return nn.functional.cross_entropy(model(before).flatten(0, 1), pixels.flatten()) / math.log(2)


@dataclasses.dataclass
class Pixels(Experiment):
    def model(self, task: dict[str, Any], letter: str, radius: int | None) -> nn.Module:
        behind = {"window": {"left": radius or (3 * RADIUS if letter == "g" else RADIUS), "right": 0}}
        columns = {"all": ["causal", {"strided": {"step": SIDE, "mode": "diagonal"}}]}
        pattern = {"f": "causal", "h": {"any": [behind, columns]}}.get(letter, behind)
        return Encoder(letter, pattern, SIDE * SIDE, tokens=START + 1, classes=256)

    def batches(self, task: dict[str, Any], seed: int) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        # The last 1,000 are for validation.
        learn = images(self.data, "train")[:-1000]
        while True:
            yield learn[torch.randint(len(learn), (BATCH,), generator=generator)]

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return bits(model, batch)

    def evaluate(self, model: nn.Module, task: dict[str, Any], split: str, last: bool) -> dict[str, Any]:
        held = images(self.data, "train")[-1000:] if split == "validation" else images(self.data, "t10k")
        return {"score": float(torch.stack([bits(model, part) for part in held[:TESTS].split(BATCH)]).mean())}


if __name__ == "__main__":
    experiment = Pixels(
        name="pixels",
        tasks=[{"n": SIDE * SIDE}],
        letters="abcdefgh",
        steps=600,
        every=100,
        rates=(1e-3, 2e-3, 4e-3),
        score="bits per pixel",
        higher_is_better=False,
        causal=True,
        radii=(6, 12, 18, 24, 36, 48, 64, 96, 128, 192, 256),
        data="/usr/share/datasets/fashion-mnist",
    )
    main(experiment, __doc__)
