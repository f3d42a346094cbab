"""Measures hops without end against one hop and five, in turn in one run.

    python3 benches/endless.py [--rounds 7] [--ms 300]

A causal window of 256 tokens, 12 heads of 64: outputs, gradients, and both, on all cores; and one head on one thread and on two.
A turn gives the median of its calls; a ratio is the median of the rounds' ratios, with the least and the largest round. Builds
examples/measure_server.rs in release mode first.
"""

import argparse
import os
import pathlib
import statistics
import tempfile

from two_commits import ROOT, Server, build, commit_of

SPEC = "name: window\nheads: {heads}\nhead_dim: 64\npattern: {{window: {{left: 255, right: 0}}}}\n"
FORMS = {"one hop": "{hops: 1}", "five hops": "{hops: 5, alpha: 0.1}", "all": "{hops: all, alpha: 0.1}"}


def rounds(servers: dict, requests: dict, count: int) -> list[dict]:
    """What every contender takes in each round, in milliseconds; who begins changes from round to round."""
    names = list(requests)
    done = []
    for number in range(count):
        turn = names[number % len(names):] + names[: number % len(names)]
        done.append({name: servers[requests[name][0]].ask(requests[name][1])["median_ms"] for name in turn})
    return done


def line(name: str, times: list[float], ratios: list[float]) -> str:
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"| {name} | {statistics.median(times):.2f} | {statistics.median(ratios):.2f} | {spread} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ms", type=float, default=300)
    parser.add_argument("--n", type=int, default=4096)
    options = parser.parse_args()
    binary = build(ROOT)
    cores = len(os.sched_getaffinity(0))
    print(f"Commit {commit_of(ROOT)}, {cores} cores, n {options.n}, {options.rounds} rounds of {options.ms:.0f} ms, "
          f"load {os.getloadavg()[0]:.1f} at the start\n")
    with tempfile.TemporaryDirectory() as folder:
        def request(heads: int, form: str, action: str) -> dict:
            path = pathlib.Path(folder, f"{heads}.yaml")
            path.write_text(SPEC.format(heads=heads))
            sets = [f"diffusion={FORMS[form]}"]
            return {"spec": str(path), "n": options.n, "set": sets, "do": action, "ms": options.ms}

        servers = {1: Server(binary, 1), cores: Server(binary, cores)}
        actions = {"forward": "outputs", "backward": "gradients"}
        wanted = {(form, action): (cores, request(12, form, action)) for action in actions for form in FORMS}
        done = rounds(servers, wanted, options.rounds)
        both = [
            {form: turn[form, "forward"] + turn[form, "backward"] for form in FORMS} for turn in done
        ]
        tables = {title: [{form: turn[form, action] for form in FORMS} for turn in done] for action, title in actions.items()}
        for title, turns in {**tables, "outputs and gradients": both}.items():
            print(f"12 heads on {cores} threads, {title}\n\n| | median ms | to one hop | rounds |\n| --- | --- | --- | --- |")
            for form in FORMS:
                print(line(form, [turn[form] for turn in turns], [turn[form] / turn["one hop"] for turn in turns]))
            print()
        wanted = {threads: (threads, request(1, "all", "forward")) for threads in servers}
        turns = rounds(servers, wanted, options.rounds)
        print("`all` for one head\n\n| threads | median ms | one thread to it | rounds |\n| --- | --- | --- | --- |")
        for threads in servers:
            print(line(str(threads), [turn[threads] for turn in turns], [turn[1] / turn[threads] for turn in turns]))
        for server in servers.values():
            server.close()


if __name__ == "__main__":
    main()
