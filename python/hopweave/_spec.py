"""Specs: who attends to whom, how scores are modified, over how many hops attention diffuses."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _hopweave


def _sets(overrides: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Overrides as the parser takes them: YAML reads JSON."""
    return [(path, value if isinstance(value, str) else json.dumps(value)) for path, value in (overrides or {}).items()]


def _limits(limits: Mapping[str, int | str] | None) -> list[str]:
    return [f"{name}={value}" for name, value in (limits or {}).items()]


class Spec:
    """A parsed spec. Equal texts give equal specs; specs can be keys of a dict.

    Make one by `Spec.load`, `Spec.from_yaml` or `Spec.from_dict`. `overrides` are values by their path, such as
    `{"diffusion.hops": 3, "heads": 4}`. `limits` bound what a spec that somebody else wrote may ask for, by the names
    of `hopweave --limit`, such as `{"edges": 1_000_000, "code": "4M", "time": "10s"}`.

    Raises
    ------
    SpecError
        If the spec is wrong. The message shows the place, and what was expected.
    """

    __slots__ = ("_native", "_text")

    def __init__(self, native: _hopweave.Spec) -> None:
        if not isinstance(native, _hopweave.Spec):
            message = "a Spec is made by Spec.load(path), Spec.from_yaml(text) or Spec.from_dict(values)"
            raise TypeError(message)
        self._native = native
        self._text = native.to_yaml()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        overrides: Mapping[str, Any] | None = None,
        limits: Mapping[str, int | str] | None = None,
        allow_files: bool = False,
    ) -> Spec:
        """The spec in a file. Arrays that it names must lie within its folder, unless `allow_files`."""
        return cls(_hopweave.Spec.load(os.fspath(path), _sets(overrides), _limits(limits), allow_files))

    @classmethod
    def from_yaml(
        cls,
        text: str,
        *,
        overrides: Mapping[str, Any] | None = None,
        limits: Mapping[str, int | str] | None = None,
        name: str = "<spec>",
    ) -> Spec:
        """The spec in a text; `name` stands for the file in messages."""
        return cls(_hopweave.Spec.parse(text, name, _sets(overrides), _limits(limits)))

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        *,
        overrides: Mapping[str, Any] | None = None,
        limits: Mapping[str, int | str] | None = None,
    ) -> Spec:
        """The spec of a dict of the same form as the YAML."""
        try:
            # YAML reads JSON. Indented, so that messages show a line and not everything.
            text = json.dumps(values, indent=2, default=_plain)
        except TypeError as error:
            raise _hopweave.SpecError(f"<dict>: {error}; expected dicts, lists, numbers, strings and booleans") from None
        return cls.from_yaml(text, overrides=overrides, limits=limits, name="<dict>")

    def mask(self, q_len: int, kv_len: int | None = None) -> np.ndarray:
        """Who may attend to whom, bool `[heads, q_len, kv_len]`."""
        return self._native.mask(q_len, q_len if kv_len is None else kv_len)

    def to_yaml(self) -> str:
        """The spec as YAML, with every default written out."""
        return self._text

    @property
    def name(self) -> str:
        return self._native.name

    @property
    def description(self) -> str | None:
        return self._native.description

    @property
    def heads(self) -> int:
        """Query heads."""
        return self._native.heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads, a divisor of `heads`."""
        return self._native.kv_heads

    @property
    def head_dim(self) -> int:
        """Width of a query or key."""
        return self._native.head_dim

    @property
    def value_dim(self) -> int:
        """Width of a value."""
        return self._native.value_dim

    @property
    def dtype(self) -> str:
        """Storage of q, k, v and the output: "f32", "bf16" or "f16"."""
        return self._native.dtype

    @property
    def hops(self) -> int:
        """Hops that attention diffuses over; 1 where they have no end (`hops: all`)."""
        return self._native.hops

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"<hopweave.Spec {self.name!r}: {self.heads} heads of {self.head_dim}, {self.dtype}, {self.hops} hops>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Spec.from_yaml, (self._text,)


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__}")
