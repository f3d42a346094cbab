"""Which threads kernels run on: torch's own where torch is imported, otherwise rayon's.

Torch's workers wait for the next operation in a loop, for milliseconds, on the cores that a kernel needs. A kernel that runs on
these very workers has nobody to wait for.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any, NamedTuple

from . import _hopweave


class Threads(NamedTuple):
    """The threads of a call.

    count : int
        How many, unless `threads=` asks for another number.
    pool : str
        "openmp", the team that torch's operations run on, or "rayon", threads of the package's own.
    why : str
        Which runtime that is, or why it is not torch's.
    """

    count: int
    pool: str
    why: str


# What compilers call for a parallel region: GCC, then Clang and Intel's.
_ENTRIES = ("GOMP_parallel", "__kmpc_fork_call")

_openmp: tuple[str, str] | None = None


def threads() -> Threads:
    """The threads that a call made now, on this thread, would run on.

    >>> hopweave.threads()
    Threads(count=2, pool='rayon', why='torch is not imported')
    """
    count = of_torch()
    if count is None:
        return Threads(_hopweave.cores(), "rayon", "torch is not imported")
    if _hopweave.forked():
        return Threads(count, "rayon", "the process was forked, and OpenMP's threads stayed with its parent")
    return Threads(count, *(_openmp or ("rayon", "torch is being imported")))


def of_torch() -> int | None:
    """As many threads as torch would use now, on this thread; None where it is not imported. Torch is not imported to find out."""
    torch = sys.modules.get("torch")
    count = getattr(torch, "get_num_threads", None)
    if count is None:
        return None
    if _openmp is None:
        _find(torch)
    return count()


def _find(torch: Any) -> None:
    """Finds the OpenMP runtime that torch calls, once."""
    global _openmp
    try:
        built = torch.backends.openmp.is_available()
        folder = pathlib.Path(torch.__file__).parent / "lib"
    except AttributeError:
        # Another thread is importing it.
        return
    if not built:
        _openmp = ("rayon", "torch was built without OpenMP")
        return
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        for entry in _ENTRIES:
            library = _hopweave.use_openmp(folder / name, entry)
            if library is not None:
                _openmp = ("openmp", library)
                return
    _openmp = ("rayon", f"no OpenMP runtime was found behind torch's libraries in {folder}")
