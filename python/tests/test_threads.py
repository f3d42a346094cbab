"""Which threads calls run on, and that results do not depend on it. Processes of their own, since what is imported, and when,
is what they are about."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import tensors

import hopweave

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

# `bits()` is what a forward and a backward call give.
COMMON = """
import os, sys, threading
import numpy as np
sys.path.insert(0, {tests!r})
from conftest import HOPS, tensors
import hopweave

spec = hopweave.Spec.from_yaml(HOPS)
q, k, v, grad = tensors(spec, 300)
kernel = hopweave.compile(spec, 300)

def bits(kernel=kernel):
    return b"".join(x.tobytes() for x in (kernel(q, k, v), *kernel.backward(q, k, v, grad)))

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(code: str, **environment: str) -> None:
    """A Python process that runs `COMMON` and `code`. It must end by itself: a pool without threads hangs."""
    text = COMMON.format(tests=str(pathlib.Path(__file__).parent)) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_without_torch_threads_are_rayons():
    run("""
        threads = hopweave.threads()
        assert threads[1:] == ("rayon", "torch is not imported") and 1 <= threads.count <= os.cpu_count(), threads
        assert bits() == bits(hopweave.compile(spec, 300, threads=1)) == bits(hopweave.compile(spec, 300, threads=3))
        assert "torch" not in sys.modules
    """)


@needs_torch
def test_with_torch_threads_are_its_own():
    run("""
        alone = bits()
        import torch
        # A kernel that was compiled before torch was there.
        threads = hopweave.threads()
        assert threads.pool == "openmp" and "omp" in threads.why, threads
        assert threads.count == torch.get_num_threads()
        assert bits() == alone
        for count in (1, 3, 2, 5):
            torch.set_num_threads(count)
            assert hopweave.threads().count == count
            assert bits() == alone
        asked = hopweave.compile(spec, 300, threads=4)
        assert bits(asked) == alone
        x = torch.from_numpy(q)
        assert kernel(x, torch.from_numpy(k), torch.from_numpy(v)).numpy().tobytes() == kernel(q, k, v).tobytes()
    """)


@needs_torch
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_with_torch_no_pool_is_started():
    run("""
        import torch
        torch.set_num_threads(3)
        expected = bits()
        def names():
            return sorted(open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task"))
        assert len(names()) >= 3
        assert not [name for name in names() if name.startswith("hopweave")], names()
        before = names()
        torch.ones(512, 512) @ torch.ones(512, 512)
        (torch.ones(1 << 20) + 1).sum()
        # Torch's operations run on the threads that the kernel has run on.
        assert names() == before, (before, names())
        assert bits() == expected
    """)


@needs_torch
def test_calls_from_many_threads():
    run("""
        import torch
        torch.set_num_threads(2)
        expected, failures = bits(), []
        def work(count):
            if count:
                torch.set_num_threads(count)
            for _ in range(5):
                torch.ones(200, 200) @ torch.ones(200, 200)
                if bits() != expected:
                    failures.append(count)
        threads = [threading.Thread(target=work, args=(count,)) for count in (0, 0, 1, 2, 3, 0)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not failures, failures
    """)


@needs_torch
def test_calls_from_within_a_parallel_region():
    run("""
        import ctypes
        import torch
        torch.set_num_threads(3)
        expected, found = bits(), []
        library = ctypes.CDLL(hopweave.threads().why)
        region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.append(bits() == expected))
        if hasattr(library, "GOMP_parallel"):
            library.GOMP_parallel.argtypes = [type(region), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel(region, None, 3, 0)
            assert found == [True] * 3, found
        # The team is as good as before.
        assert bits() == expected
    """)


@needs_fork
@pytest.mark.parametrize("torch", ["", pytest.param("import torch; torch.set_num_threads(2)", marks=needs_torch)])
@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_children_of_fork(torch, used):
    run(f"""
        expected = bits(hopweave.compile(spec, 300, threads=1))
        {torch or "pass"}
        if {used}:
            assert bits() == expected
            if "torch" in sys.modules:
                (torch.ones(1 << 20) + 1).sum()

        def work():
            threads = hopweave.threads()
            assert threads.pool == "rayon", threads
            if "torch" in sys.modules:
                assert threads.count == 2 and "forked" in threads.why, threads
            # Kernels of the parent, and of the child's own: random draws and masks are made on many threads too.
            assert bits() == expected
            assert bits(hopweave.compile(spec, 300)) == expected
            other = hopweave.Spec.from_dict({{
                "name": "random", "heads": 4, "head_dim": 16,
                "pattern": {{"random": {{"keys_per_query": 5, "seed": 1}}}},
            }})
            assert other.mask(2000, 2000).sum() == 4 * 2000 * 5
            hopweave.compile(other, 20000)
            # And of a child's child.
            if not hasattr(work, "again"):
                work.again = True
                in_child(work)

        in_child(work)
        # The parent goes on as before.
        assert bits() == expected
    """)


@needs_torch
@needs_fork
def test_children_with_one_thread_stay_with_it():
    # As workers of torch's DataLoader do.
    run("""
        import torch
        expected = bits()
        def work():
            torch.set_num_threads(1)
            assert hopweave.threads().count == 1
            assert bits() == expected
        in_child(work)
    """)


@needs_torch
def test_an_openmp_runtime_of_others():
    """LLVM's or Intel's runtime in the place of torch's, entered by both of its interfaces."""
    candidates = [
        *pathlib.Path(sys.prefix, "lib").glob("libiomp5.so"),
        *pathlib.Path(sys.prefix, "lib").glob("libomp.so"),
        *pathlib.Path("/usr/lib").glob("*-linux-gnu/libomp.so.5"),
        *pathlib.Path("/usr/lib").glob("llvm-*/lib/libomp.so.5"),
    ]
    if not candidates:
        pytest.skip("neither libomp nor libiomp5 is installed")
    for entry in ("GOMP_parallel", "__kmpc_fork_call"):
        code = f"""
            import hopweave._threads
            hopweave._threads._ENTRIES = ({entry!r},)
            alone = bits()
            import torch
            for count in (2, 3, 1):
                torch.set_num_threads(count)
                assert bits() == alone
            threads = hopweave.threads()
            assert threads.pool == "openmp" and "gomp" not in threads.why, threads
        """
        run(code, LD_PRELOAD=str(candidates[0]))


@needs_torch
def test_torch_without_a_runtime_is_said():
    run("""
        import hopweave._threads
        hopweave._threads._ENTRIES = ("no_such_function",)
        alone = bits()
        import torch
        torch.set_num_threads(2)
        threads = hopweave.threads()
        assert threads.count == 2 and threads.pool == "rayon" and "no OpenMP runtime" in threads.why, threads
        assert bits() == alone
    """)


def test_results_go_where_they_shall(hops):
    q, k, v, _ = tensors(hops, 90)
    kernel = hopweave.compile(hops, 90)
    expected, lse = kernel(q, k, v, return_lse=True)
    out = np.full_like(expected, np.nan)
    address = out.ctypes.data
    given, again = kernel(q, k, v, out=out, return_lse=True)
    assert given is out and out.ctypes.data == address
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(again, lse)
    # [batch, length, heads, width] seen as [batch, heads, length, width], a part of something wider, and backwards.
    views = [
        np.full((2, 90, 4, 24), np.nan, np.float32).transpose(0, 2, 1, 3),
        np.full((2, 4, 90, 40), np.nan, np.float32)[..., 8:32],
        np.full((2, 4, 90, 24), np.nan, np.float32)[:, ::-1],
    ]
    for view in views:
        assert kernel(q, k, v, out=view) is view
        np.testing.assert_array_equal(view, expected)
    assert np.isnan(views[1].base[..., :8]).all() and np.isnan(views[1].base[..., 32:]).all()


def test_outputs_that_cannot_be_written_are_refused(hops):
    q, k, v, _ = tensors(hops, 90)
    kernel = hopweave.compile(hops, 90)
    out = np.zeros((2, 4, 90, 24), np.float32)
    frozen = out.view()
    frozen.flags.writeable = False
    with pytest.raises(hopweave.ShapeError, match="out: a read-only array"):
        kernel(q, k, v, out=frozen)
    repeated = np.lib.stride_tricks.as_strided(out, out.shape, (0, *out.strides[1:]))
    with pytest.raises(hopweave.ShapeError, match="out: expected shape elements that do not overlap"):
        kernel(q, k, v, out=repeated)
    with pytest.raises(hopweave.ShapeError, match=r"out: shape \[2, 4, 89, 24\]; expected \[2, 4, 90, 24\]"):
        kernel(q, k, v, out=out[:, :, 1:])


def test_outputs_may_not_overlap_inputs_of_mods():
    spec = hopweave.Spec.from_dict({
        "name": "biased",
        "heads": 2,
        "head_dim": 8,
        "inputs": {"rel": {"shape": ["heads", "n"]}},
        "pattern": "full",
        "score": {"mods": [{"bias": {"input": "rel", "index": ["h", "k"]}}]},
    })
    q, k, v, _ = tensors(spec, 16, batch=1)
    memory = np.zeros(1 * 2 * 16 * 8, np.float32)
    with pytest.raises(hopweave.ShapeError, match="out: overlaps rel; expected memory of its own"):
        hopweave.attention(q, k, v, spec, inputs={"rel": memory[:32].reshape(2, 16)}, out=memory.reshape(1, 2, 16, 8))


@needs_torch
def test_torch_is_told_what_is_written(hops):
    import torch

    q, k, v, _ = (torch.from_numpy(x) for x in tensors(hops, 90))
    kernel = hopweave.compile(hops, 90)
    out = torch.zeros(2, 4, 90, 24)
    version = out._version
    assert kernel(q, k, v, out=out) is out and out._version > version
    assert torch.equal(out, kernel(q, k, v))
    # A tensor that autograd has saved and that is written afterwards is found out, as with torch's own functions.
    weight = torch.ones(24, requires_grad=True)
    loss = (out * weight).sum()
    kernel(q, k, v, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with pytest.raises(hopweave.UnsupportedError, match="out: a tensor that requires grad"):
        kernel(q, k, v, out=torch.zeros(2, 4, 90, 24, requires_grad=True))
    with torch.inference_mode():
        assert torch.equal(kernel(q, k, v, out=torch.zeros(2, 4, 90, 24)), kernel(q, k, v))
