"""Times the commands that look at specs, as whole processes: the table of a record.

    cargo build --release && python3 benches/looking.py

For every pattern file: `explain` at 65,536 tokens (asked: under 2 s), `show` at 1,000,000 tokens (asked: under 1 s) and
`explain --html` at 4,096 (asked: under 0.5 s); and `check` of every wrong spec of tests/spec_errors.txt (asked: under 10 ms).
Medians of five runs, after one that does not count.
"""

import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
HOPWEAVE = ROOT / "target/release/hopweave"
RUNS = 5


def milliseconds(arguments: list[str], status: int = 0) -> float | None:
    """The median, or nothing where the command has another status than expected."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        done = subprocess.run([HOPWEAVE, *arguments], capture_output=True)
        times.append(1000 * (time.perf_counter() - start))
        if done.returncode != status:
            return None
    return statistics.median(times[1:])


def main() -> None:
    folder = pathlib.Path(tempfile.mkdtemp())
    page = str(folder / "page.html")
    print("| pattern | explain 65,536 | show 1,000,000 | explain --html 4,096 |\n| --- | --- | --- | --- |")
    for path in sorted((ROOT / "patterns").glob("*.yaml")):
        cells = []
        for command, n, more in [
            ("explain", 65_536, []), ("show", 1_000_000, []), ("explain", 4096, ["--html", page])
        ]:
            found = milliseconds([command, str(path), "-n", str(n), *more])
            cells.append("does not fit" if found is None else f"{found:.0f} ms")
        print(f"| {path.stem} | {' | '.join(cells)} |", flush=True)
    cases = (ROOT / "tests/spec_errors.txt").read_text().split("=== ")[1:]
    times = []
    for case in cases:
        title, text = case.split("~~~\n")[0].split("\n", 1)
        text = "".join(line for line in text.splitlines(True) if not line.startswith("> "))
        (folder / "bad.yaml").write_text(text)
        # Some are wrong only at a length, or with other limits.
        if (found := milliseconds(["check", str(folder / "bad.yaml")], 1)) is not None:
            times.append((found, title))
    times.sort()
    print(f"\ncheck of {len(times)} wrong specs: median {statistics.median(t for t, _ in times):.1f} ms, "
          f"slowest {times[-1][0]:.1f} ms ({times[-1][1]})")


if __name__ == "__main__":
    main()
