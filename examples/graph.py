"""Hops over real graphs: personalised PageRank and APPNP, beside networkx and PyTorch Geometric.

A graph has no wider window to buy: neighbors come from `edges`, and more of the graph is reached by more hops alone.

    pip install torch torch_geometric networkx scipy pandas pyarrow
    pip install --no-deps graphdatascience      # Cora and LastFM lie in its folder; nothing is downloaded when this runs
    python examples/graph.py --json graph.json

**Weights of a graph from a softmax.** With q = k = 0 all scores of a row are equal, so A = D^-1 W for the graph's 0/1
matrix W with degrees D: the random walk. The symmetric normalisation of graph convolutions (Kipf and Welling 2017) is a
scaling of values before, and of the output after:

    D^-1/2 W D^-1/2 = D^1/2 (D^-1 W) D^-1/2,  and so for every power of it and every sum of powers.

PageRank walks along columns, W D^-1 = D (D^-1 W) D^-1 where W is symmetric: the same with D in place of D^1/2. Weights of
edges w > 0 would be scores log w, from q and k or from a bias.

**APPNP** (Gasteiger, Bojchevski and Günnemann, ICLR 2019, eq. 4): Z_0 = H, Z_{k+1} = (1 - alpha) Â Z_k + alpha H, which is
`diffusion: {hops: K, alpha: a}`. **Personalised PageRank** is its limit, `{alpha: a, tolerance: t}`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import networkx
import numpy as np
import scipy.sparse
import torch
from torch import nn
from torch_geometric.nn import APPNP

import hopweave
import hopweave.torch

HOPS, ALPHA = 10, 0.1  # as published
DAMPING = 0.85


@dataclass
class Graph:
    """An undirected graph: `pairs [edges, 2]` hold both directions."""

    name: str
    n: int
    pairs: np.ndarray
    features: torch.Tensor | None = None
    classes: torch.Tensor | None = None

    def loops(self) -> np.ndarray:
        """The pairs, and every node with itself."""
        own = np.arange(self.n)
        return np.concatenate([self.pairs, np.stack([own, own], 1)])


def karate() -> Graph:
    """34 members of a club (Zachary 1977), from networkx."""
    graph = networkx.karate_club_graph()
    return Graph("karate club", len(graph), _both_ways(np.array(graph.edges)))


def _table(name: str):
    import pandas

    found = find_spec("graphdatascience")
    if found is None or found.origin is None:
        raise SystemExit("Cora and LastFM lie in the folder of a package: pip install --no-deps graphdatascience")
    return pandas.read_parquet(pathlib.Path(found.origin).parent / "resources" / name)


def cora() -> Graph:
    """2,708 papers that cite each other, in seven subjects (McCallum et al. 2000, Sen et al. 2008)."""
    nodes, cites = _table("cora/cora_nodes.parquet.gzip"), _table("cora/cora_rels.parquet.gzip")
    graph = _numbered("Cora", nodes.nodeId, [cites])
    graph.features = torch.tensor(np.stack(nodes.features), dtype=torch.float32)
    graph.features /= graph.features.sum(1, keepdim=True).clamp(min=1)
    graph.classes = torch.tensor(nodes.subject.to_numpy(), dtype=torch.int64)
    return graph


def lastfm() -> Graph:
    """Users of a music service, their friends, and artists that they hear (HetRec 2011): about 20,000 nodes."""
    tables = [_table(f"lastfm/{name}.parquet.gzip") for name in ("user_listen_artist_rels", "user_friend_df_directed")]
    ends = [np.asarray(table[column]) for table in tables for column in ("sourceNodeId", "targetNodeId")]
    return _numbered("LastFM", np.unique(np.concatenate(ends)), tables)


def _numbered(name: str, ids, tables) -> Graph:
    """Ends of edges as numbers of nodes."""
    number = {int(node): at for at, node in enumerate(ids)}
    pairs = [[number[int(a)], number[int(b)]] for t in tables for a, b in zip(t.sourceNodeId, t.targetNodeId, strict=True)]
    return Graph(name, len(number), _both_ways(np.array(pairs)))


def _both_ways(pairs: np.ndarray) -> np.ndarray:
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)


class Propagation(nn.Module):
    """Values `[n, width]` diffused over a graph by a kernel, scaled by a power of the degrees before and after."""

    def __init__(self, n: int, pairs: np.ndarray, diffusion: dict, power: float, width: int) -> None:
        super().__init__()
        # The array is read when a kernel is compiled, so that it stays as long as the spec does.
        self.folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.folder.name)
        np.save(folder / "edges.npy", pairs)
        values = {
            "name": "graph",
            "head_dim": 1,
            "value_dim": width,
            "pattern": {"edges": {"file": "edges.npy"}},
            "diffusion": diffusion,
        }
        (folder / "graph.yaml").write_text(json.dumps(values))
        self.spec = hopweave.Spec.load(folder / "graph.yaml")
        degree = torch.from_numpy(np.bincount(pairs[:, 0], minlength=n)).to(torch.float64)
        self.scale = (degree**power).to(torch.float32)[:, None]
        self.zeros = torch.zeros(1, 1, n, 1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        scaled = (values / self.scale)[None, None]
        out = hopweave.torch.attention(self.zeros, self.zeros, scaled, self.spec, threads=torch.get_num_threads())
        return out[0, 0] * self.scale


def clock() -> float:
    """Seconds; with one thread those of the processor, which what else runs on the machine does not stretch."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def in_turn(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each, taking turns; the first call of each compiles and fills caches and does not count."""
    for call in contenders.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = clock() + seconds
    while clock() < end or len(next(iter(times.values()))) < 5:
        for name, call in contenders.items():
            start = clock()
            call()
            times[name].append((clock() - start) * 1e3)
    return {name: statistics.median(of) for name, of in times.items()}


def appnp(graph: Graph, width: int, seconds: float) -> dict:
    """APPNP by a kernel and by PyTorch Geometric, on its edge list and on its sparse matrix."""
    ours = Propagation(graph.n, graph.loops(), {"hops": HOPS, "alpha": ALPHA}, 0.5, width)
    edges = torch.from_numpy(graph.pairs.T.copy())
    values = torch.rand(graph.n, width, generator=torch.Generator().manual_seed(1)) - 0.5
    theirs = APPNP(HOPS, ALPHA, cached=True).eval()
    matrix = APPNP(HOPS, ALPHA, cached=True).eval()
    adjacency = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1]), (graph.n, graph.n)).to_sparse_csr()
    with torch.no_grad():
        expected = theirs(values, edges)
        error = (ours(values) - expected).abs().max() / expected.abs().max()
        # The three agree, or the times would say nothing.
        assert error < 1e-5, f"APPNP on {graph.name}: {error}"
        assert (matrix(values, adjacency) - expected).abs().max() / expected.abs().max() < 1e-5
        forward = in_turn(
            {
                "hopweave": lambda: ours(values),
                "PyG, edge list": lambda: theirs(values, edges),
                "PyG, sparse matrix": lambda: matrix(values, adjacency),
            },
            seconds,
        )

    def step(call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        leaf = values.clone().requires_grad_()
        call(leaf).sum().backward()

    both = in_turn(
        {
            "hopweave": lambda: step(ours),
            "PyG, edge list": lambda: step(lambda x: theirs(x, edges)),
            "PyG, sparse matrix": lambda: step(lambda x: matrix(x, adjacency)),
        },
        seconds,
    )
    of = {"graph": graph.name, "n": graph.n, "edges": len(graph.pairs), "width": width}
    return {**of, "error": float(error), "forward": forward, "both": both}


def pagerank(graph: Graph, seconds: float) -> dict:
    """The personalised PageRank of a node by a kernel, by networkx, and by scipy's matrix alone."""
    person = int(np.bincount(graph.pairs[:, 0]).argmax())
    start = torch.zeros(graph.n, 1)
    start[person] = 1
    restart = 1 - DAMPING
    walk = Propagation(graph.n, graph.pairs, {"alpha": restart, "tolerance": 1e-6}, 1.0, 1)
    library = networkx.Graph()
    library.add_nodes_from(range(graph.n))
    library.add_edges_from(graph.pairs)
    # networkx stops where a step changes the sum by less than n · tol; the same number of hops for scipy alone.
    by_networkx = lambda: networkx.pagerank(library, DAMPING, {person: 1.0}, tol=1e-6 / graph.n, max_iter=1000)  # noqa: E731
    matrix = scipy.sparse.csr_array((np.ones(len(graph.pairs), np.float32), graph.pairs.T), (graph.n, graph.n))
    matrix = (matrix @ scipy.sparse.diags_array(1 / np.maximum(matrix.sum(0), 1).astype(np.float32))).tocsr()

    def by_scipy() -> np.ndarray:
        rank = restarts = start[:, 0].numpy()
        for _ in range(walk.spec.hops):
            rank = DAMPING * (matrix @ rank) + restart * restarts
        return rank

    with torch.no_grad():
        ours = walk(start)[:, 0].numpy()
        ranks = by_networkx()
        expected = np.array([ranks[node] for node in range(graph.n)])
        difference = float(np.abs(ours - expected).sum())
        assert difference < 1e-4, f"PageRank on {graph.name}: {difference}"
        assert np.abs(by_scipy() - expected).sum() < 1e-4
        times = in_turn({"hopweave": lambda: walk(start), "networkx": by_networkx, "scipy's matrix": by_scipy}, seconds)
    return {"graph": graph.name, "hops": walk.spec.hops, "difference": difference, "times": times}


class Classifier(nn.Module):
    """Predict, then propagate: a network of two layers on each node's own features, then hops (eq. 4)."""

    def __init__(self, graph: Graph, propagate: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        assert graph.features is not None and graph.classes is not None
        self.hidden = nn.Linear(graph.features.shape[1], 64, bias=False)
        self.out = nn.Linear(64, int(graph.classes.max()) + 1, bias=False)
        self.propagate = propagate

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.hidden(nn.functional.dropout(features, 0.5, self.training)))
        return self.propagate(self.out(nn.functional.dropout(hidden, 0.5, self.training)))


def classify(graph: Graph, seeds: int, epochs: int) -> dict[str, dict]:
    """Test accuracy of node classification, where the hops are a kernel, PyTorch Geometric's, or left out.

    20 nodes of every class to learn from, 500 others to stop by, 1,000 to test, drawn by the seed.
    """
    assert graph.features is not None and graph.classes is not None
    classes = int(graph.classes.max()) + 1
    edges = torch.from_numpy(graph.pairs.T.copy())
    theirs = APPNP(HOPS, ALPHA, cached=True)
    ways = {
        "no hops": lambda x: x,
        "PyG's APPNP": lambda x: theirs(x, edges),
        "hopweave": Propagation(graph.n, graph.loops(), {"hops": HOPS, "alpha": ALPHA}, 0.5, classes),
    }
    results: dict[str, dict] = {name: {"accuracy": [], "epoch_ms": []} for name in ways}
    for seed in range(seeds):
        order = torch.randperm(graph.n, generator=torch.Generator().manual_seed(seed))
        learn = torch.cat([order[graph.classes[order] == c][:20] for c in range(classes)])
        others = order[~torch.isin(order, learn)]
        stop, test = others[:500], others[500:1500]
        for name, propagate in ways.items():
            torch.manual_seed(seed)
            model = Classifier(graph, propagate)
            optimizer = torch.optim.Adam(
                [{"params": model.hidden.parameters(), "weight_decay": 5e-3}, {"params": model.out.parameters()}], lr=0.01
            )
            best = (0.0, 0.0)
            times = []
            for _ in range(epochs):
                start = clock()
                model.train()
                loss = nn.functional.cross_entropy(model(graph.features)[learn], graph.classes[learn])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                times.append((clock() - start) * 1e3)
                model.eval()
                with torch.no_grad():
                    right = (model(graph.features).argmax(1) == graph.classes).float()
                best = max(best, (float(right[stop].mean()), float(right[test].mean())), key=lambda pair: pair[0])
            results[name]["accuracy"].append(best[1])
            results[name]["epoch_ms"].append(statistics.median(times))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of every comparison of times")
    parser.add_argument("--seeds", type=int, default=10, help="of node classification")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=pathlib.Path, help="where all numbers go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    graphs = [karate(), cora(), lastfm()]

    print("| APPNP, 10 hops | nodes | edges | width | hopweave ms | PyG, edge list | PyG, sparse matrix | difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    spread = []
    for graph, width in ((graphs[0], 8), (graphs[1], 7), (graphs[1], 64), (graphs[2], 8), (graphs[2], 64)):
        row = appnp(graph, width, options.seconds)
        spread.append(row)
        for kind in ("forward", "both"):
            times = " | ".join(f"{row[kind][name]:.2f}" for name in row[kind])
            label = graph.name if kind == "forward" else f"{graph.name}, forward and backward"
            print(f"| {label} | {row['n']:,} | {row['edges'] // 2:,} | {width} | {times} | {row['error']:.1e} |", flush=True)

    print("\n| personalised PageRank | hops | hopweave ms | networkx | scipy's matrix | difference, summed |")
    print("| --- | --- | --- | --- | --- | --- |")
    ranks = [pagerank(graph, options.seconds) for graph in graphs]
    for row in ranks:
        times = " | ".join(f"{ms:.2f}" for ms in row["times"].values())
        print(f"| {row['graph']} | {row['hops']} | {times} | {row['difference']:.1e} |", flush=True)

    print("\n| Cora, classes of papers | test accuracy | 95 % | ms an epoch |\n| --- | --- | --- | --- |")
    learned = classify(graphs[1], options.seeds, options.epochs)
    for name, row in learned.items():
        accuracy = np.array(row["accuracy"])
        half = 1.96 * accuracy.std(ddof=1) / len(accuracy) ** 0.5 if len(accuracy) > 1 else float("nan")
        print(f"| {name} | {accuracy.mean():.3f} | ±{half:.3f} | {statistics.median(row['epoch_ms']):.1f} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"appnp": spread, "pagerank": ranks, "classification": learned}, indent=1))


if __name__ == "__main__":
    main()
