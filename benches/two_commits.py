"""Measures two commits against each other, in turn in one run: what a change costs.

    python3 benches/two_commits.py OLD [NEW]

OLD and NEW are commits, or folders that hold a checkout; NEW is this checkout where it is not given. Each is built in release
mode with examples/measure_server.rs of this checkout. Commits are built under target/two-commits, where they stay for the next
run (`git worktree remove` takes them away).

For every pattern file, 1 and 5 hops, n 1024 and 4096, the two take turns in calls forward, calls backward, and compilations of
both kernels. A round is a turn of each; who begins changes from round to round. Both processes are started anew for every half
of the rounds, since where memory happens to lie costs some percent for as long as a process lives. A turn gives the median of
its calls, a round the ratio new / old, and a case the median of its rounds' ratios. Cases beyond the limit are measured once
more, with three times the rounds, and the second look counts: of some hundred cases a few are beyond it by chance.
Results of both are compared, too.

--count-instructions counts the instructions of calls under valgrind instead, on one thread with AVX2: slow, but the same
in every run.
"""

import argparse
import datetime
import itertools
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVER = "examples/measure_server.rs"
CALLS = ["forward", "backward"]
COMPILATIONS = ["compile", "compile_training"]
TITLES = {
    "forward": "calls forward", "backward": "calls backward",
    "compile": "compiling, forward", "compile_training": "compiling, for training",
}
# What instructions are counted of: a window, a grid, hops over random tokens, chunks, score mods.
COUNTED = ["alibi-causal", "diffuser", "local-chunks", "natten-2d", "sliding-window"]
# Largest difference of two f32 results, over the largest number, that passes as another order of sums.
DIFFERENCE = 1e-4


class Refused(Exception):
    """A commit cannot do what a case asks for."""


def run(command: list[str], **more) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **more).stdout.strip()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the two builds


def checkout(what: str) -> pathlib.Path:
    """The folder of a commit, with the server's source in it."""
    wanted = (ROOT / SERVER).read_text()
    if pathlib.Path(what).is_dir():
        folder = pathlib.Path(what).resolve()
        source = folder / SERVER
        if source.exists() and source.read_text() != wanted:
            sys.exit(f"{source} differs from {ROOT / SERVER}: copy it, so that both sides measure the same way")
    else:
        commit = run(["git", "-C", str(ROOT), "rev-parse", "--verify", f"{what}^{{commit}}"])
        folder = ROOT / "target/two-commits" / commit[:12]
        if not folder.exists():
            run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(folder), commit], stderr=subprocess.DEVNULL)
    (folder / SERVER).write_text(wanted)
    return folder


def build(folder: pathlib.Path) -> pathlib.Path:
    say(f"building {folder}")
    environment = {key: value for key, value in os.environ.items() if key != "CARGO_TARGET_DIR"}
    run(["cargo", "build", "--release", "--locked", "--example", "measure_server"], cwd=folder, env=environment)
    return folder / "target/release/examples/measure_server"


def commit_of(folder: pathlib.Path) -> str:
    git = ["git", "-C", str(folder)]
    changed = run([*git, "status", "--porcelain", "--untracked-files=no", "--", "src", "Cargo.lock", "Cargo.toml"])
    return run([*git, "rev-parse", "HEAD"])[:12] + (" with changes" if changed else "")


# --- the two servers


class Server:
    """A process that measures on demand."""

    def __init__(self, binary: pathlib.Path, threads: int):
        # Both on the same cores, the last ones: the first one serves most interrupts.
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        self.process = subprocess.Popen(
            [binary, "--threads", str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, request: dict) -> dict:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Refused(f"the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer

    def close(self) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()


class Pair:
    """The servers of both sides, for as long as a `with`."""

    def __init__(self, binaries: dict[str, pathlib.Path], threads: int):
        self.binaries, self.threads = binaries, threads

    def __enter__(self) -> dict[str, Server]:
        self.servers = {side: Server(binary, self.threads) for side, binary in self.binaries.items()}
        return self.servers

    def __exit__(self, *_) -> None:
        for server in self.servers.values():
            server.close()


def ask_both(servers: dict[str, Server], request: dict, order: list[str]) -> dict[str, dict]:
    """The answers of both sides, or why which of them refuses: both are asked in any case."""
    answers, refusals = {}, {}
    for side in order:
        try:
            answers[side] = servers[side].ask(request)
        except Refused as refused:
            refusals[side] = str(refused)
    if refusals:
        by = "both" if len(refusals) == 2 else f"{next(iter(refusals))} alone"
        raise Refused(f"by {by}: {next(iter(refusals.values()))}")
    return answers


# --- measuring


class Case:
    """A pattern at a length with a number of hops, of which one thing is timed."""

    def __init__(self, spec: pathlib.Path, n: int, hops: int, action: str, clock: str):
        self.spec, self.n, self.hops, self.action = spec, n, hops, action
        self.key = f"{clock}_ms"
        self.rounds: list[dict[str, dict]] = []
        self.first_look: float | None = None
        self.difference: float | None = None
        self.refused: str | None = None

    def __str__(self) -> str:
        return f"{self.spec.stem}, n {self.n}, {self.hops} {'hop' if self.hops == 1 else 'hops'}, {self.action}"

    def request(self, ms: float) -> dict:
        sets = [f"diffusion.hops={self.hops}"]
        return {"spec": str(self.spec), "n": self.n, "set": sets, "do": self.action, "ms": ms}

    def ratios(self) -> list[float]:
        return [turn["new"][self.key] / turn["old"][self.key] for turn in self.rounds]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios())

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of the ratios."""
        low, _, high = statistics.quantiles(self.ratios(), n=4, method="inclusive")
        return low, high

    def ms(self, side: str) -> float:
        return statistics.median(turn[side][self.key] for turn in self.rounds)

    def scratch(self, side: str) -> int:
        return self.rounds[0][side]["scratch_bytes"]

    def json(self) -> dict:
        facts = {"pattern": self.spec.stem, "n": self.n, "hops": self.hops, "what": self.action}
        if self.refused:
            return {**facts, "refused": self.refused}
        return {
            **facts, "ratio": self.ratio, "spread": self.spread, "first_look": self.first_look,
            "difference": self.difference, "rounds": self.rounds,
        }


def measure(cases: list[Case], binaries: dict[str, pathlib.Path], rounds: int, arguments: argparse.Namespace) -> None:
    """Takes rounds of cases that share spec, length and hops, so that they share processes."""
    for half in range(2):
        with Pair(binaries, arguments.threads) as servers, tempfile.TemporaryDirectory() as folder:
            for case in cases:
                try:
                    measure_half(case, servers, half, rounds, arguments, f"{folder}/result")
                except Refused as refused:
                    case.refused, case.rounds = str(refused), []


def measure_half(
    case: Case, servers: dict[str, Server], half: int, rounds: int, arguments: argparse.Namespace, file: str
) -> None:
    if case.refused:
        return
    calls = case.action in CALLS
    if calls:
        # The first call of each, which compiles and warms; from here on nothing is refused.
        ask_both(servers, {**case.request(0), "calls": 1}, ["old", "new"])
    if calls and case.difference is None:
        servers["old"].ask({**case.request(0), "calls": 0, "write": file})
        case.difference = servers["new"].ask({**case.request(0), "calls": 0, "against": file})["difference"]
        os.unlink(file)
    share = rounds // 2 + (rounds % 2 if half == 0 else 0)
    for _ in range(share):
        order = ["old", "new"] if len(case.rounds) % 2 == 0 else ["new", "old"]
        case.rounds.append(ask_both(servers, case.request(arguments.turn if calls else arguments.compile_turn), order))


def measure_all(cases: list[Case], binaries: dict[str, pathlib.Path], arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    for _, group in itertools.groupby(cases, lambda case: (case.spec, case.n, case.hops)):
        group = list(group)
        measure(group, binaries, arguments.rounds, arguments)
        for case in group:
            shown = f"refused {case.refused}" if case.refused else f"{case.ratio:.3f}"
            say(f"{time.monotonic() - start:5.0f} s  {case}: {shown}")
    for case in cases:
        if not case.refused and abs(math.log(case.ratio)) > math.log(1 + arguments.limit):
            case.first_look, case.rounds = case.ratio, []
            measure([case], binaries, 3 * arguments.rounds, arguments)
            say(f"{time.monotonic() - start:5.0f} s  again {case}: {case.first_look:.3f}, then {case.ratio:.3f}")


# --- instructions


def count(binary: pathlib.Path, request: dict, calls: int) -> int:
    """Instructions of a whole process that makes so many calls."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(binary), "--threads", "1", "--isa", "avx2"]
    done = subprocess.run(command, input=json.dumps({**request, "calls": calls}) + "\n", text=True, capture_output=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if "refused" in done.stdout or not found:
        raise Refused((done.stdout or done.stderr)[-300:].strip())
    return int(found.group(1))


def count_instructions(
    specs: list[pathlib.Path], binaries: dict[str, pathlib.Path], arguments: argparse.Namespace
) -> list[str]:
    """Lines of a table: instructions of a call, as the difference of processes that make three calls and one."""
    lines = ["| case | old, million | new, million | new / old |", "| --- | --- | --- | --- |"]
    for spec, hops, action in itertools.product(specs, arguments.hops, CALLS):
        case = Case(spec, arguments.n[0], hops, action, arguments.clock)
        try:
            request = case.request(0)
            counts = {side: [count(binary, request, calls) for calls in (1, 3)] for side, binary in binaries.items()}
            old, new = ((counts[side][1] - counts[side][0]) / 2e6 for side in ("old", "new"))
            lines.append(f"| {case} | {old:.3f} | {new:.3f} | {new / old:.4f} |")
        except Refused as refused:
            lines.append(f"| {case} | refused | | {refused} |")
        say(lines[-1])
    return lines


# --- the report


def geomean(ratios: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


def machine(arguments: argparse.Namespace, folders: dict[str, pathlib.Path]) -> dict:
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": cpu, "cores": len(os.sched_getaffinity(0)), "threads": arguments.threads, "system": platform.platform(),
        "rust": run(["rustc", "--version"]), "load": os.getloadavg()[0],
        "old": commit_of(folders["old"]), "new": commit_of(folders["new"]),
        "command": "python3 benches/two_commits.py " + " ".join(sys.argv[1:]),
    }


def case_table(cases: list[Case]) -> list[str]:
    lines = ["| case | old, ms | new, ms | new / old | middle half |", "| --- | --- | --- | --- | --- |"]
    for case in cases:
        low, high = case.spread
        first = f" (first {case.first_look:.3f})" if case.first_look else ""
        lines.append(
            f"| {case} | {case.ms('old'):.3f} | {case.ms('new'):.3f} | {case.ratio:.3f}{first} | {low:.3f} to {high:.3f} |"
        )
    return lines


def report(cases: list[Case], facts: dict, limit: float) -> str:
    done = [case for case in cases if not case.refused]
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| what | cases | geomean new / old | fastest | slowest | slower by more than the limit |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    groups = [(TITLES[action], [case for case in done if case.action == action]) for action in TITLES]
    groups.insert(2, ("all calls", [case for case in done if case.action in CALLS]))
    for title, group in groups:
        if ratios := [case.ratio for case in group]:
            slower = sum(ratio > 1 + limit for ratio in ratios)
            lines.append(
                f"| {title} | {len(ratios)} | {geomean(ratios):.4f} | {min(ratios):.3f} | {max(ratios):.3f} | {slower} |"
            )

    def part(title: str, rows: list[str]) -> None:
        lines.extend(["", f"## {title}", "", *(rows or ["None."])])

    slower = sorted((case for case in done if case.ratio > 1 + limit), key=lambda case: -case.ratio)
    part(f"Slower by more than {100 * limit:g} %", case_table(slower) if slower else [])
    more = [case for case in done if case.scratch("new") > case.scratch("old") * 1.01]
    part("More scratch, by more than 1 %", [
        f"- {case}: {case.scratch('old'):,} bytes, then {case.scratch('new'):,}" for case in more if case.action in CALLS
    ])
    unlike = [case for case in done if (case.difference or 0) > DIFFERENCE]
    compared = [case.difference for case in done if case.difference is not None]
    part(f"Results that differ by more than {DIFFERENCE:g} of the largest number", [
        *(f"- {case}: {case.difference:.1e}" for case in unlike),
        *([f"- largest difference of {len(compared)} results: {max(compared):.1e}"] if compared else []),
    ])
    part("Refused", [f"- {case}: {case.refused}" for case in cases if case.refused])
    part("All cases", case_table(done) if done else [])
    return "\n".join(lines) + "\n"


def numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="commit or folder")
    parser.add_argument("new", nargs="?", default=str(ROOT), help="commit or folder; this checkout where it is not given")
    parser.add_argument("--filter", default="", metavar="REGEX", help="only cases such as 'diffuser, n 1024'")
    parser.add_argument("--quick", action="store_true", help="n 1024 alone, turns of 30 ms, compilations of 15")
    parser.add_argument("--patterns", type=pathlib.Path, default=ROOT / "patterns", help="folder of pattern files")
    parser.add_argument("--n", type=numbers, help="lengths; 1024,4096 where it is not given")
    parser.add_argument("--hops", type=numbers, default=[1, 5], help="numbers of hops")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side in a case, at least 2")
    parser.add_argument("--turn", type=float, metavar="MS", help="calls of a turn; at least one is made")
    parser.add_argument("--compile-turn", type=float, metavar="MS", help="compilations of a turn; 0 measures one each")
    parser.add_argument(
        "--clock", choices=["median", "min", "cpu"], default="median",
        help="what a turn gives: median or minimum of its calls, or the processor time of a call, which others do not disturb",
    )
    parser.add_argument("--no-compile", action="store_true", help="calls alone")
    parser.add_argument("--limit", type=float, default=0.05, help="ratio - 1 beyond which a case is listed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of a call")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="writes everything that was measured")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="writes the report there, too")
    parser.add_argument("--count-instructions", action="store_true", help="counts instructions instead of time")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: expected at least 2")
    quick = arguments.quick
    arguments.n = arguments.n or ([1024] if quick else [1024, 4096])
    arguments.turn = (30 if quick else 100) if arguments.turn is None else arguments.turn
    arguments.compile_turn = (15 if quick else 50) if arguments.compile_turn is None else arguments.compile_turn
    return arguments


def main() -> None:
    arguments = parse_arguments()
    specs = sorted(arguments.patterns.resolve().glob("*.yaml"))
    folders = {"old": checkout(arguments.old), "new": checkout(arguments.new)}
    binaries = {side: build(folder) for side, folder in folders.items()}
    facts = machine(arguments, folders)
    start = time.monotonic()
    if arguments.count_instructions:
        counted = [spec for spec in specs if spec.stem in COUNTED and re.search(arguments.filter, spec.stem)]
        text = "\n".join([*(f"- {key}: {value}" for key, value in facts.items()), "",
                          *count_instructions(counted, binaries, arguments)]) + "\n"
    else:
        actions = CALLS if arguments.no_compile else CALLS + COMPILATIONS
        cases = [Case(*case, arguments.clock) for case in itertools.product(specs, arguments.n, arguments.hops, actions)]
        cases = [case for case in cases if re.search(arguments.filter, str(case))]
        measure_all(cases, binaries, arguments)
        facts["minutes"] = round((time.monotonic() - start) / 60, 1)
        if arguments.json:
            arguments.json.write_text(json.dumps({"machine": facts, "cases": [case.json() for case in cases]}))
        text = report(cases, facts, arguments.limit)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
