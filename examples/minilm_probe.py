"""How near a sparse pattern comes to full attention, by hops and by a wider window, on q, k and v of a trained encoder.

    python examples/minilm_probe.py [--out FILE]

The tensors of examples/minilm-layer3: 12 heads, 512 tokens of text. Every number is an error relative to full attention,
|out - full| / |full| over all heads. Per-head coefficients are fitted by least squares on the even queries; every error
is of the odd ones, those without a fit too.

- *fixed*: Z_K of {hops: K, alpha: a}, the same a in all heads;
- *alpha a head*: the same, each head with the best of a grid on the even queries; K = all is the limit;
- *coefficients*: sum of theta[h, k] A^k V, {coefficients: {input: theta}}. One hop has them too (theta_0 V + theta_1 A V),
  so that what a scale and a share of V do is not taken for what hops do.

Five hops cost what three of a one-hop window's units do (a score and a value product are a unit each, a hop one more), so
the rival of equal cost is one hop over three times the radius.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np

import hopweave

DATA = pathlib.Path(__file__).parent / "minilm-layer3"
ALPHAS = (0.02, 0.05, 0.1, 0.2, 0.4)
GRID = np.linspace(0.0, 1.0, 21)
RADII = (8, 16, 32, 64)
HOPS = (1, 2, 3, 5, 8)


class Probe:
    """Powers A^k V of a window, with or without a global token, and the errors of what is made of them."""

    def __init__(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, full: np.ndarray, radius: int, tokens: int) -> None:
        window = {"window": {"radius": radius}}
        pattern = {"any": [window, {"global": {"tokens": {"first": tokens}}}]} if tokens else window
        self.values = {"name": "probe", "heads": q.shape[1], "head_dim": q.shape[3], "pattern": pattern}
        self.tensors, self.full = (q, k, v), full[0].astype(np.float64)
        one_hop = hopweave.Spec.from_dict(self.values)
        powers = [v]
        for _ in range(max(HOPS)):
            powers.append(hopweave.attention(q, k, powers[-1], one_hop))
        self.powers = np.stack([power[0] for power in powers]).astype(np.float64)  # [k, head, n, width]
        self.pairs = int(one_hop.mask(q.shape[2])[0].sum())

    def by_kernel(self, theta: np.ndarray) -> float | None:
        """The error with coefficients `[heads, hops + 1]` in one call; None where this version has no such kernel."""
        hops = theta.shape[1] - 1
        try:
            spec = hopweave.Spec.from_dict({**self.values, "diffusion": {"hops": hops, "coefficients": {"input": "theta"}}})
        except hopweave.SpecError:
            return None
        return self.error(hopweave.attention(*self.tensors, spec, inputs={"theta": theta.astype(np.float32)})[0])

    def error(self, out: np.ndarray, queries: slice = slice(1, None, 2)) -> float:
        """Of an output `[head, n, width]`."""
        return float(np.linalg.norm((out - self.full)[:, queries]) / np.linalg.norm(self.full[:, queries]))

    def fixed(self, hops: int, alpha: float) -> float:
        spec = hopweave.Spec.from_dict({**self.values, "diffusion": {"hops": hops, "alpha": alpha}})
        return self.error(hopweave.attention(*self.tensors, spec)[0])

    def alpha_a_head(self, hops: int | None) -> float:
        """The best alpha of the grid for each head; `hops` None is the limit, by dense solving."""
        outs = [self._limit(alpha) if hops is None else self._diffused(hops, alpha) for alpha in GRID if hops or alpha]
        of_even = np.stack([np.linalg.norm((out - self.full)[:, ::2], axis=(1, 2)) for out in outs])
        best = of_even.argmin(0)
        return self.error(np.stack([outs[at][head] for head, at in enumerate(best)]))

    def _diffused(self, hops: int, alpha: float) -> np.ndarray:
        """Z_hops from the powers: alpha (1 - alpha)^k of A^k V below the last, (1 - alpha)^hops of the last."""
        weights = [alpha * (1 - alpha) ** k for k in range(hops)] + [(1 - alpha) ** hops]
        return np.tensordot(weights, self.powers[: hops + 1], 1)

    def _limit(self, alpha: float) -> np.ndarray:
        if not hasattr(self, "walk"):
            q, k, _ = (x[0].astype(np.float64) for x in self.tensors)
            mask = hopweave.Spec.from_dict(self.values).mask(q.shape[1])
            scores = np.where(mask, q @ k.swapaxes(1, 2) / q.shape[2] ** 0.5, -np.inf)
            self.walk = np.exp(scores - scores.max(2, keepdims=True))
            self.walk /= self.walk.sum(2, keepdims=True)
        n = self.walk.shape[1]
        return alpha * np.linalg.solve(np.eye(n) - (1 - alpha) * self.walk, self.powers[0])

    def fitted(self, hops: int, first: int = 0) -> tuple[float, np.ndarray]:
        """Error with coefficients of each head for the powers from `first` to `hops`, and the coefficients `[heads, powers]`."""
        basis = self.powers[first : hops + 1]
        theta = np.stack(
            [
                np.linalg.lstsq(basis[:, head, ::2].reshape(len(basis), -1).T, self.full[head, ::2].ravel(), rcond=None)[0]
                for head in range(basis.shape[1])
            ]
        )
        return self.error(np.einsum("hk,khnd->hnd", theta, basis)), theta


def table(head: list[str], rows: list[list[object]]) -> str:
    """Rows in Markdown; errors with three digits."""
    lines = [head, ["---"] * len(head), *([f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report() -> str:
    q, k, v, full = (np.load(DATA / f"{name}.npy") for name in ("q", "k", "v", "full"))
    fixed, learned, theta, of_kernel = [], [], None, None
    for tokens in (0, 1):
        for radius in RADII:
            probe, wide = (Probe(q, k, v, full, of, tokens) for of in (radius, 3 * radius))
            name = f"±{radius}" + (", one global token" if tokens else "")
            fixed.append([name, probe.pairs, probe.fixed(1, 0.0), *(probe.fixed(5, a) for a in ALPHAS), wide.fixed(1, 0.0)])
            fits = [probe.fitted(hops) for hops in HOPS]
            ends = [probe.alpha_a_head(5), probe.alpha_a_head(None)]
            wide_fits = [wide.fitted(hops)[0] for hops in (1, 5)]
            learned.append([name, probe.fitted(1, first=1)[0], *(error for error, _ in fits), *ends, *wide_fits])
            if (radius, tokens) == (32, 1):
                theta = fits[HOPS.index(5)][1]
                of_kernel = probe.by_kernel(theta)
    assert theta is not None
    fits_named = ["scaled", *(f"θ {k}" for k in HOPS)]
    ends_named = ["5 hops, alpha a head", "all hops, alpha a head", "3 × radius, θ 1", "3 × radius, θ 5"]
    return "\n".join(
        [
            "## Fixed alpha, five hops\n",
            table(["pattern", "pairs a head", "one hop", *(f"alpha {a}" for a in ALPHAS), "one hop, 3 × radius"], fixed),
            "\n## Fitted for each head\n",
            "`θ K` has K + 1 coefficients for each head, `scaled` the factor of one hop alone.\n",
            table(["pattern", *fits_named, *ends_named], learned),
            "\n## The coefficients of ±32 with one global token, K = 5\n",
            table(["head", *(f"θ_{k}" for k in range(6))], [[at, *map(float, row)] for at, row in enumerate(theta)]),
            f"\nError of one call with these coefficients: {of_kernel:.3f}" if of_kernel is not None else "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="a file for the tables")
    options = parser.parse_args()
    text = report()
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
