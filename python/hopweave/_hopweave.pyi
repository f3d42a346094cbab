from os import PathLike
from typing import Any

import numpy as np

__version__: str

class SpecError(ValueError): ...
class ShapeError(ValueError): ...
class UnsupportedError(RuntimeError): ...

def forked() -> bool: ...
def cores() -> int: ...
def use_openmp(torch: PathLike[str], entry: str) -> str | None: ...

class Spec:
    name: str
    description: str | None
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    hops: int
    @staticmethod
    def parse(text: str, file: str, sets: list[tuple[str, str]], limits: list[str]) -> Spec: ...
    @staticmethod
    def load(path: str, sets: list[tuple[str, str]], limits: list[str], allow_files: bool) -> Spec: ...
    def to_yaml(self) -> str: ...
    def mask(self, q_len: int, kv_len: int) -> np.ndarray: ...

class Operator:
    def __init__(
        self,
        spec: Spec,
        q_len: int,
        kv_len: int,
        isa: str,
        threads: int | None,
        strategy: str | None,
        memory_limit: int | None,
    ) -> None: ...
    def plan(self) -> tuple[str, str, list[str]] | None: ...
    def forward(
        self, q: Any, k: Any, v: Any, arguments: Any, out: Any, lse: Any, of_torch: int | None
    ) -> None: ...
    def backward(
        self, q: Any, k: Any, v: Any, grad_out: Any, saved: Any, arguments: Any, into: Any, of_torch: int | None
    ) -> list[tuple[str, np.ndarray]]: ...
