"""What the three experiments share: kinds of attention, a small encoder, training, times of steps, results, intervals.

    python examples/hops_study/hops.py        # checks that the kernels agree with dense torch, outputs and gradients

An experiment (see `Experiment`) says what is learned; `main` runs its cells. A cell is a training run; its result is a line
of JSON, and cells that have one are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import nn

import hopweave
import hopweave.torch

HOPS, ALPHA = 5, 0.1
# theta and alpha are a handful of numbers that have far to go: a rate of their own, the same everywhere.
HOP_RATE = 1e-2
# Where a pattern is not causal, the limit is iterated, and a smaller alpha takes more hops than there may be (1,024).
LEAST_ALPHA = 0.02
CHOOSING_SEED = 1000

DIFFUSION: dict[str, dict[str, Any] | None] = {
    "a": None,
    "b": {"hops": HOPS, "alpha": ALPHA},
    "c": {"hops": HOPS, "coefficients": {"input": "theta"}},
    "d": {"hops": "all", "alpha": {"input": "alpha"}},
    "e": None,
    "f": None,
    "g": None,
    "h": None,
}
NAMES = {
    "a": "one hop",
    "b": "five hops, fixed alpha",
    "c": "five hops, learned coefficients",
    "d": "all hops, learned alpha",
    "e": "one hop, radius of equal time",
    "f": "full",
    "g": "one hop, three times the radius",
    "h": "one hop, informed pattern",
}


def diffuse_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    *,
    hops: int | str = 1,
    alpha: torch.Tensor | float = 0.0,
    theta: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a kernel computes, by n × n matrices and torch's own gradients.

    q, k, v `[batch, heads, n, width]`, mask `[heads, n, n]` or `[n, n]`; alpha a number or `[heads]`; theta
    `[heads, hops + 1]`. `hops="all"` solves the limit directly, also where a kernel iterates to a tolerance.
    """
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    # A row without keys is zero.
    weights = torch.where(mask.any(-1, keepdim=True), scores, 0.0).softmax(-1) * mask
    if theta is not None:
        powers = itertools.accumulate(range(theta.shape[1] - 1), lambda power, _: weights @ power, initial=v)
        return sum(theta[:, at, None, None] * power for at, power in enumerate(powers))
    restart = torch.as_tensor(alpha, dtype=v.dtype).reshape(-1, 1, 1)
    if hops == "all":
        system = torch.eye(v.shape[-2], dtype=v.dtype) - (1 - restart) * weights
        if not bool(mask.triu(1).any()):
            return torch.linalg.solve_triangular(system, restart * v, upper=False)
        return torch.linalg.solve(system, restart * v)
    states = v
    for _ in range(int(hops)):
        states = (1 - restart) * (weights @ states) + restart * v
    return states


@functools.cache
def served(letter: str, causal: bool) -> bool:
    """Whether the installed version has kernels for this form of hops, over patterns that are causal or that are not."""
    if DIFFUSION[letter] is None:
        return True
    tensor = torch.zeros(1, 1, 16, 16)
    inputs = {"theta": torch.ones(1, HOPS + 1), "alpha": torch.full((1,), ALPHA)}
    named = {name: inputs[name] for name in _inputs(letter)}
    try:
        spec = _spec(letter, "causal" if causal else "full", 1, 16)
        hopweave.attention(tensor, tensor, tensor, spec, inputs=named)
    except (hopweave.SpecError, hopweave.UnsupportedError):
        return False
    return True


def _inputs(letter: str) -> list[str]:
    """Names of what comes with each call."""
    return [of["input"] for of in (DIFFUSION[letter] or {}).values() if isinstance(of, dict)]


def _spec(letter: str, pattern: Any, heads: int, width: int) -> hopweave.Spec:
    values = {"name": "study", "heads": heads, "head_dim": width, "pattern": pattern}
    if DIFFUSION[letter] is not None:
        values["diffusion"] = DIFFUSION[letter]
    return hopweave.Spec.from_dict(values)


class HopAttention(nn.Module):
    """Attention of one variant, with what its hops learn. It starts as five hops with alpha 0.1, or as `all` with 0.1."""

    def __init__(self, letter: str, pattern: Any, heads: int, width: int, dense: bool = False) -> None:
        super().__init__()
        causal = not torch.from_numpy(_spec("a", pattern, heads, width).mask(64)).triu(1).any()
        self.letter, self.dense = letter, dense or not served(letter, bool(causal))
        # The mask alone where the version at hand refuses the hops.
        self.spec = _spec("a" if self.dense else letter, pattern, heads, width)
        if letter == "c":
            start = [ALPHA * (1 - ALPHA) ** k for k in range(HOPS)] + [(1 - ALPHA) ** HOPS]
            self.theta = nn.Parameter(torch.tensor([start] * heads))
        if letter == "d":
            self.logit = nn.Parameter(torch.full((heads,), (ALPHA - LEAST_ALPHA) / (1 - LEAST_ALPHA)).logit())

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        inputs = {}
        if self.letter == "c":
            inputs["theta"] = self.theta
        if self.letter == "d":
            inputs["alpha"] = LEAST_ALPHA + (1 - LEAST_ALPHA) * self.logit.sigmoid()
        if not self.dense:
            return hopweave.torch.attention(q, k, v, self.spec, inputs=inputs, threads=torch.get_num_threads())
        fixed = {name: of for name, of in (DIFFUSION[self.letter] or {}).items() if name in ("hops", "alpha")}
        return diffuse_dense(q, k, v, self.mask(q.shape[2]), **{**fixed, **inputs})

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def mask(self, n: int) -> torch.Tensor:
        return torch.from_numpy(self.spec.mask(n))


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a norm. States `[batch, n, width]`."""

    def __init__(self, width: int, heads: int, attention: HopAttention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        batch, n, width = states.shape
        q, k, v = self.qkv(self.norm(states)).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        states = states + self.out(self.attention(q, k, v).transpose(1, 2).reshape(batch, n, width))
        return states + self.feed(states)


class Encoder(nn.Module):
    """Tokens `[batch, n]` to logits `[batch, n, classes]`: two layers, a learned vector for each position."""

    def __init__(self, letter: str, pattern: Any, n: int, tokens: int, classes: int, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(tokens, width), nn.Parameter(0.02 * torch.randn(n, width))
        attentions = [HopAttention(letter, pattern, heads, width // heads) for _ in range(2)]
        self.layers = nn.Sequential(*(Layer(width, heads, attention) for attention in attentions))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.tokens(tokens) + self.positions))


@dataclasses.dataclass
class Experiment:
    """What is learned. Subclasses give the methods; they are sent to other processes, so that data is loaded late."""

    name: str
    tasks: list[dict[str, Any]]
    letters: str
    steps: int
    every: int
    rates: tuple[float, ...]
    score: str
    higher_is_better: bool
    causal: bool
    radii: tuple[int, ...]
    """Candidates for variant e."""
    data: str = ""
    """Where the data lies, if it is not made up."""

    def model(self, task: dict[str, Any], letter: str, radius: int | None) -> nn.Module:
        """Variant `letter`; `radius` in place of the task's own, if one is given."""
        raise NotImplementedError

    def batches(self, task: dict[str, Any], seed: int) -> Iterator[Any]:
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        raise NotImplementedError

    def evaluate(self, model: nn.Module, task: dict[str, Any], split: str, last: bool) -> dict[str, Any]:
        """At least `score`; split is "validation" or "test"; `last` after the last step."""
        raise NotImplementedError

    def more(self, lines: list[dict[str, Any]]) -> dict[str, str]:
        """Further columns of the table, from the test runs of one variant."""
        return {}


class Results:
    """Lines of JSON. Each is one write to the file's end, so that processes can share it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def find(self, **cell: Any) -> list[dict[str, Any]]:
        """Those that have these values."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            # A process that was ended may leave a part of a line; its cell is run again.
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
        return [line for line in lines if all(line.get(key) == value for key, value in cell.items())]

    def add(self, line: dict[str, Any]) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{json.dumps(line)}\n".encode())


def optimizer_of(model: nn.Module, rate: float, warm: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with `warm` steps of a linear start and then a constant rate, so that a run cut short is a shorter run."""
    of_hops = [p for module in model.modules() if isinstance(module, HopAttention) for p in module.parameters()]
    others = [p for p in model.parameters() if p.requires_grad and not any(p is of for of in of_hops)]
    groups = [{"params": others, "lr": rate, "weight_decay": 0.01}]
    if of_hops:
        groups.append({"params": of_hops, "lr": HOP_RATE, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm))


def train(experiment: Experiment, cell: dict[str, Any], radius: int | None, split: str) -> dict[str, Any]:
    """One run: scores over steps, and what was learned of the hops."""
    torch.manual_seed(cell["seed"])
    model = experiment.model(cell["task"], cell["variant"], radius).train()
    optimizer, warm = optimizer_of(model, cell["rate"], max(1, min(100, experiment.steps // 10)))
    began, curve = time.perf_counter(), []
    result: dict[str, Any] = {}
    for step, batch in enumerate(itertools.islice(experiment.batches(cell["task"], cell["seed"]), experiment.steps), 1):
        loss = experiment.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm.step()
        if step % experiment.every == 0 or step == experiment.steps:
            model.eval()
            with torch.no_grad():
                result = experiment.evaluate(model, cell["task"], split, step == experiment.steps)
            model.train()
            curve.append([step, result["score"]])
    attentions = [module for module in model.modules() if isinstance(module, HopAttention)]
    learned = [{name: p.tolist() for name, p in module.named_parameters()} for module in attentions]
    return {
        **cell,
        **result,
        "radius": radius,
        "curve": curve,
        "learned": learned if any(learned) else None,
        "operator": "dense" if attentions[0].dense else "kernel",
        "wall_seconds": time.perf_counter() - began,
    }


def run_variant(experiment: Experiment, task: dict[str, Any], letter: str, seeds: int, path: pathlib.Path) -> None:
    """A rate chosen on validation data with a seed of its own, then a run for each seed."""
    torch.set_num_threads(1)
    results = Results(path)
    radius = radius_of(results, task) if letter == "e" else None

    def run(stage: str, seed: int, rate: float) -> dict[str, Any]:
        cell = {"experiment": experiment.name, "stage": stage, "task": task, "variant": letter, "seed": seed, "rate": rate}
        cell["steps"] = experiment.steps
        if found := results.find(**cell):
            return found[0]
        line = train(experiment, cell, radius, "validation" if stage == "choose" else "test")
        results.add(line)
        seconds = f"{line['wall_seconds']:.0f} s"
        print(f"{task} {letter} {stage} seed {seed} rate {rate:g}: {line['score']:.4f} in {seconds}", flush=True)
        return line

    chosen = [run("choose", CHOOSING_SEED, rate) for rate in experiment.rates]
    best = (max if experiment.higher_is_better else min)(chosen, key=lambda line: line["score"])
    for seed in range(seeds):
        run("test", seed, best["rate"])


def measure(
    experiment: Experiment, task: dict[str, Any], letters: dict[str, tuple[str, int | None]], rounds: int
) -> dict[str, float]:
    """Median milliseconds of processor time of a training step on one thread, in turn.

    Processor time, so that what else runs does not count; the first steps compile and are left out.
    """
    torch.set_num_threads(1)
    batches = experiment.batches(task, CHOOSING_SEED)
    models = {name: experiment.model(task, *of).train() for name, of in letters.items()}
    steps = {name: optimizer_of(model, 1e-4, 1)[0] for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for batch in itertools.islice(batches, rounds + 2):
        for name, model in models.items():
            start = time.process_time()
            loss = experiment.loss(model, batch)
            steps[name].zero_grad(set_to_none=True)
            loss.backward()
            steps[name].step()
            times[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(of[2:]) for name, of in times.items()}


def measure_task(experiment: Experiment, task: dict[str, Any], results: Results, rounds: int) -> None:
    """Times of steps, and the radius of variant e: the largest candidate whose step takes no longer than b's.

    The radius is kept once it is found; times are taken again when a newer version has kernels for more variants.
    """
    key = {"experiment": experiment.name, "task": task}
    if "e" in experiment.letters and not results.find(**key, stage="radius"):
        candidates: dict[str, tuple[str, int | None]] = {str(radius): ("e", radius) for radius in experiment.radii}
        times = measure(experiment, task, {"b": ("b", None), **candidates}, rounds)
        within = [radius for radius in experiment.radii if times[str(radius)] <= times["b"]]
        results.add({**key, "stage": "radius", "radius": max(within, default=min(experiment.radii)), "step_ms": times})
    wanted = "".join(letter for letter in experiment.letters if served(letter, experiment.causal))
    if not results.find(**key, stage="times", letters=wanted):
        letters = {letter: (letter, radius_of(results, task) if letter == "e" else None) for letter in wanted}
        results.add({**key, "stage": "times", "letters": wanted, "step_ms": measure(experiment, task, letters, rounds)})


def radius_of(results: Results, task: dict[str, Any]) -> int:
    found = results.find(stage="radius", task=task)
    if not found:
        raise SystemExit("the radius of equal time is not known yet; run with --do time first")
    return found[0]["radius"]


def times_of(experiment: Experiment, results: Results, task: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of a step of those variants that were measured, as measured last."""
    found = results.find(experiment=experiment.name, stage="times", task=task)
    return found[-1]["step_ms"] if found else {}


# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval; NaN for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, float("nan")
    return mean, T95[min(len(values) - 1, max(T95))] * statistics.stdev(values) / len(values) ** 0.5


def at_seconds(line: dict[str, Any], step_ms: float, budget_ms: float) -> float:
    """The score at the last look within a budget of steps at their measured time; NaN before the first."""
    within = [score for step, score in line["curve"] if step * step_ms <= budget_ms * (1 + 1e-9)]
    return within[-1] if within else float("nan")


def summary(experiment: Experiment, results: Results) -> str:
    """Tables of what there is."""
    text = []
    for task in experiment.tasks:
        key = {"experiment": experiment.name, "task": task}
        runs = {
            letter: results.find(**key, stage="test", variant=letter, steps=experiment.steps) for letter in experiment.letters
        }
        if not any(runs.values()):
            continue
        times = times_of(experiment, results, task)
        # The time that the cheapest variant takes for all of its steps.
        budget = experiment.steps * min(times.values(), default=float("nan"))
        wide = {line["seed"]: line["score"] for line in runs.get("e", [])}
        text += [f"\n### {', '.join(f'{key} {value}' for key, value in task.items())}\n"]
        rows = []
        for letter, lines in runs.items():
            paired = [line["score"] - wide[line["seed"]] for line in lines if line["seed"] in wide]
            seconds = [at_seconds(line, times[letter], budget) for line in lines] if letter in times else []
            rows.append(
                {
                    "variant": f"{letter}: {NAMES[letter]}",
                    "radius": str((lines and lines[0]["radius"]) or ""),
                    "operator": lines[0]["operator"] if lines else "",
                    "rate": f"{lines[0]['rate']:g}" if lines else "",
                    "seeds": str(len(lines)),
                    "step, ms": f"{times[letter]:.1f}" if letter in times else "not measured",
                    f"{experiment.score}, equal steps": shown(line["score"] for line in lines) or "not run",
                    "less e, paired": shown(paired) if letter != "e" else "",
                    "equal seconds": shown(seconds),
                    **(experiment.more(lines) if lines else {}),
                }
            )
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text += [_row(columns), _row(["---"] * len(columns))]
        text += [_row([row.get(column, "") for column in columns]) for row in rows]
    return "\n".join(text)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def shown(values: Any) -> str:
    """Mean and 95 % interval of several values, the value of one, nothing of none."""
    values = list(values)
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:.3f}"


def plot(experiment: Experiment, results: Results, path: pathlib.Path, extra: Callable[..., None] | None = None) -> None:
    """Scores over steps and over seconds, a row of pictures for each task."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "hops"
    from matplotlib import pyplot

    tasks = [task for task in experiment.tasks if results.find(experiment=experiment.name, stage="test", task=task)]
    if not tasks:
        return
    columns = 3 if extra else 2
    size = (5 * columns, 3.6 * len(tasks))
    figure, axes = pyplot.subplots(len(tasks), columns, figsize=size, layout="constrained", squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        times = times_of(experiment, results, task)
        for at, letter in enumerate(experiment.letters):
            lines = results.find(experiment=experiment.name, stage="test", task=task, variant=letter, steps=experiment.steps)
            if not lines:
                continue
            steps = [step for step, _ in lines[0]["curve"]]
            means = [statistics.fmean(line["curve"][i][1] for line in lines) for i in range(len(steps))]
            style = {"label": f"{letter}: {NAMES[letter]}", "color": f"C{at}"}
            row[0].plot(steps, means, **style)
            if letter in times:
                row[1].plot([step * times[letter] / 1e3 for step in steps], means, **style)
            if extra:
                extra(row[2], lines, style)
        row[0].set(xlabel="step", ylabel=experiment.score, title=", ".join(f"{key} {value}" for key, value in task.items()))
        row[1].set(xlabel="seconds at the measured time of a step", ylabel=experiment.score)
        row[0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(experiment: Experiment, description: str, extra: Callable[..., None] | None = None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--do", default="time,run,plot", help="of time, run and plot, in this order")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("hops_study"), help="folder of results")
    if experiment.data:
        parser.add_argument("--data", default=experiment.data, help="folder of the data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=experiment.steps)
    parser.add_argument("--rounds", type=int, default=20, help="steps that times are medians of")
    parser.add_argument("--workers", type=int, default=2, help="variants that train at the same time, on one thread each")
    parser.add_argument("--variants", default=experiment.letters)
    parser.add_argument("--tasks", type=int, nargs="*", help="numbers of tasks, from 0; all by default")
    options = parser.parse_args()
    experiment.steps, experiment.data = options.steps, getattr(options, "data", "")
    results = Results(options.out / f"{experiment.name}.jsonl")
    tasks = experiment.tasks if options.tasks is None else [experiment.tasks[at] for at in options.tasks]
    doing = options.do.split(",")
    for letter in options.variants:
        if not served(letter, experiment.causal):
            print(f"{letter}: {NAMES[letter]}: no kernel in this version; dense torch, and no time of its steps", flush=True)
    if "time" in doing:
        for task in tasks:
            measure_task(experiment, task, results, options.rounds)
    if "run" in doing:
        groups = [(experiment, task, letter, options.seeds, results.path) for task in tasks for letter in options.variants]
        if options.workers == 1:
            for group in groups:
                run_variant(*group)
        else:
            with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
                for running in [pool.submit(run_variant, *group) for group in groups]:
                    running.result()
    if "plot" in doing:
        text = summary(experiment, results)
        print(text)
        (options.out / f"{experiment.name}.md").write_text(text + "\n")
        plot(experiment, results, options.out / f"{experiment.name}.svg", extra)


def check() -> None:
    """Kernels against `diffuse_dense`: outputs, and gradients of q, k, v, theta and alpha."""
    window = {"window": {"radius": 4}}
    for letter, causal in itertools.product("abcd", (False, True)):
        pattern = {"all": [window, "causal"]} if causal else window
        if not served(letter, causal):
            print(f"{letter}: {NAMES[letter]}: no kernel in this version, nothing to compare")
            continue
        torch.manual_seed(0)
        tensors = [torch.randn(2, 3, 100, 16) for _ in range(3)]
        grad = torch.randn(2, 3, 100, 16)
        both = []
        for dense in (False, True):
            attention = HopAttention(letter, pattern, 3, 16, dense)
            leaves = [x.clone().requires_grad_() for x in tensors]
            out = attention(*leaves)
            of_leaves = torch.autograd.grad(out, [*leaves, *attention.parameters()], grad)
            both.append([out, *of_leaves])
        errors = [float((a.detach() - b.detach()).abs().max() / b.detach().abs().max()) for a, b in zip(*both, strict=True)]
        print(f"{letter}: {NAMES[letter]}, {pattern}: {', '.join(f'{error:.1e}' for error in errors)}")
        assert max(errors) < 1e-4, "the kernel and the dense reference differ"
    # The reference itself, by kernels of forms that it need not share: as they start, c is b, and d what many hops come to.
    many = hopweave.Spec.from_dict(
        {"name": "many", "heads": 3, "head_dim": 16, "pattern": window, "diffusion": {"hops": 200, "alpha": ALPHA}}
    )
    b = HopAttention("b", window, 3, 16)
    for letter, other in (("c", b), ("d", lambda *tensors: hopweave.torch.attention(*tensors, many))):
        ours, theirs = HopAttention(letter, window, 3, 16, dense=True)(*tensors), other(*tensors)
        error = float((ours.detach() - theirs).abs().max() / theirs.abs().max())
        print(f"{letter}: {NAMES[letter]}, dense, as it starts: {error:.1e}")
        assert error < 1e-5, "the dense reference is wrong"


if __name__ == "__main__":
    check()
