"""Sparse, multi-hop attention on CPUs, compiled from a YAML spec.

>>> spec = hopweave.Spec.load("patterns/diffuser.yaml")
>>> kernel = hopweave.compile(spec, q_len=4096, kv_len=4096)
>>> out = kernel(q, k, v)                       # numpy arrays or torch tensors [batch, heads, n, width]
>>> dq, dk, dv = kernel.backward(q, k, v, grad_out)

`hopweave.attention(q, k, v, spec)` compiles at the first use of a length. With torch, `hopweave.torch.attention` is
differentiable. Importing this package imports numpy and not torch.
"""

from ._hopweave import ShapeError, SpecError, UnsupportedError, __version__, compilations
from ._kernel import Dropout, Kernel, attention, compile, select
from ._spec import Spec
from ._threads import Threads, threads

__all__ = [
    "Dropout",
    "Kernel",
    "ShapeError",
    "Spec",
    "SpecError",
    "Threads",
    "UnsupportedError",
    "__version__",
    "attention",
    "compilations",
    "compile",
    "select",
    "threads",
]
