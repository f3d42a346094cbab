"""Attention over many processes, each of which holds a slice of the tokens.

Before each hop a process receives those rows of others that its own queries attend to, and no others; the gradient sends
theirs back. Processes talk through `torch.distributed`, by a backend that takes CPU tensors (gloo, mpi).

Several hops are computed one by one in float32, and each hop computes the weights of A again. Score mods that read positions
(all but `softcap`) make each process hold tensors as long as the whole sequence; the rows that it receives are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.distributed as dist

from . import _hopweave
from ._hopweave import ShapeError
from ._kernel import Kernel, _spec
from ._spec import Spec
from .torch import _DTYPES, _Eager, _sorted, _unit

__all__ = ["Plan", "attention", "plan"]


class Plan:
    """Who holds and who receives which rows. Made by `plan`.

    Attributes
    ----------
    n, world : int
        Tokens and processes.
    slices : list of range
        The tokens of every process: as even as multiples of 64 allow; some are empty where there are fewer blocks of 64.
    bytes : int
        The most that any one process receives in a forward call at batch 1.
    all_gather_bytes : int
        The same where all rows go to all processes before every hop.
    rounds : int
        How many times rows are sent in a forward call.
    """

    def __init__(self, spec: Spec, n: int, world: int) -> None:
        self._native = _hopweave.Exchange(spec._native, n, world)
        self.n, self.world = n, world
        self.slices = [range(start, end) for start, end in self._native.slices]
        self.bytes, self.rounds = self._native.bytes, self._native.rounds
        self.all_gather_bytes = self._native.all_gather_bytes
        self._received: dict[int, list[list[tuple[int, int]]]] = {}
        self._routes: dict[tuple[int, int], _Route] = {}
        self._kernels: dict[tuple, Kernel] = {}

    def text(self) -> str:
        """The plan, for people."""
        return self._native.text()

    def __repr__(self) -> str:
        return f"<hopweave.distributed.Plan: {self.n} tokens, {self.world} processes, {self.bytes} bytes received>"

    def _route(self, pattern: int, rank: int) -> _Route:
        key = (pattern, rank)
        if key not in self._routes:
            if pattern not in self._received:
                self._received[pattern] = self._native.received(pattern)
            self._routes[key] = _Route(self, self._received[pattern], rank, *self._native.cut(pattern, rank))
        return self._routes[key]

    def _kernel(self, pattern: int, rank: int, first: bool, threads: int | None, isa: str) -> Kernel:
        key = (pattern, rank, first, threads, isa)
        if key not in self._kernels:
            route = self._route(pattern, rank)
            native = self._native.operator((pattern, rank, first), isa, threads)
            self._kernels[key] = Kernel(Spec(self._native.hop_spec(first)), route.q_len, route.kv_len, native)
        return self._kernels[key]


class _Route:
    """What a process sends and receives before a hop, and where it puts it."""

    def __init__(self, plan: Plan, received, rank: int, first: int, q_len: int, blocks: list[int]) -> None:
        self.rank, self.q_len, self.own = rank, q_len, plan.slices[rank]
        place = {block: 64 * i for i, block in enumerate(blocks)}
        self.kv_len = sum(min(64, plan.n - 64 * block) for block in blocks)
        # Rows of zeros before and behind the queries.
        self.before = self.own.start - first if self.own else 0
        self.behind = q_len - self.before - len(self.own)
        self.own_at = place[self.own.start // 64] if self.own else 0
        self.take: dict[int, torch.Tensor] = {}
        self.give: dict[int, torch.Tensor] = {}
        for peer, rows in enumerate(plan.slices):
            taken = _rows(received[rank], rows)
            if taken:
                self.take[peer] = torch.tensor([place[row // 64] + row % 64 for row in taken])
            given = _rows(received[peer], self.own) if peer != rank else []
            if given:
                self.give[peer] = torch.tensor(given) - self.own.start


def _rows(ranges: list[tuple[int, int]], within: range) -> list[int]:
    """The rows of ranges that stand in another."""
    return [row for lo, hi in ranges for row in range(max(lo, within.start), min(hi, within.stop))]


def _pack(tensors, index: torch.Tensor) -> torch.Tensor:
    """Some rows of all tensors, as bytes."""
    return torch.cat([x.index_select(2, index).contiguous().view(-1).view(torch.uint8) for x in tensors])


def _unpack(data: torch.Tensor, tensors, rows: int):
    """What was packed, of tensors of the same kinds."""
    at = 0
    for x in tensors:
        shape = (x.shape[0], x.shape[1], rows, x.shape[3])
        size = x.element_size() * shape[0] * shape[1] * shape[2] * shape[3]
        # A copy begins where its element type may begin.
        yield data[at : at + size].clone().view(x.dtype).view(shape)
        at += size


def _swap(send: dict[int, torch.Tensor], expected: dict[int, int], group, what: str) -> dict[int, torch.Tensor]:
    """Sends bytes to peers, and receives as many as are expected from each."""
    got = {peer: torch.empty(size, dtype=torch.uint8) for peer, size in expected.items()}

    def of(op, peer, data):
        everywhere = peer if group is None else dist.get_global_rank(group, peer)
        return dist.P2POp(op, data, everywhere, group)

    ops = [of(dist.irecv, peer, data) for peer, data in got.items() if data.numel()]
    ops += [of(dist.isend, peer, data) for peer, data in send.items() if data.numel()]
    if not ops:
        return got
    peers = sorted({*send, *got})
    try:
        for work in dist.batch_isend_irecv(ops):
            work.wait()
    except RuntimeError as error:
        raise RuntimeError(
            f"hopweave.distributed: {what} failed between process {dist.get_rank(group)} and processes {peers}: {error}; "
            "expected all processes of the group to be alive and in the same call"
        ) from error
    return got


class _Gather(torch.autograd.Function):
    """Rows of this process and of others, in the places that a kernel reads; backwards, their gradients go home."""

    @staticmethod
    def forward(ctx, route: _Route, group, *tensors):
        ctx.route, ctx.group = route, group
        a_row = sum(x.element_size() * x.shape[0] * x.shape[1] * x.shape[3] for x in tensors)
        send = {peer: _pack(tensors, index) for peer, index in route.give.items()}
        got = _swap(send, {peer: a_row * len(index) for peer, index in route.take.items()}, group, "sending rows")
        whole = [x.new_zeros(x.shape[0], x.shape[1], route.kv_len, x.shape[3]) for x in tensors]
        own = slice(route.own_at, route.own_at + len(route.own))
        for x, into in zip(tensors, whole, strict=True):
            into[:, :, own] = x
        for peer, data in got.items():
            index = route.take[peer]
            for into, rows in zip(whole, _unpack(data, tensors, len(index)), strict=True):
                into.index_copy_(2, index, rows)
        return tuple(whole)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        route = ctx.route
        a_row = sum(x.element_size() * x.shape[0] * x.shape[1] * x.shape[3] for x in grads)
        send = {peer: _pack(grads, index) for peer, index in route.take.items()}
        expected = {peer: a_row * len(index) for peer, index in route.give.items()}
        got = _swap(send, expected, ctx.group, "sending gradients")
        own = slice(route.own_at, route.own_at + len(route.own))
        sums = [x[:, :, own].clone() for x in grads]
        for peer in sorted(got):
            index = route.give[peer]
            for into, rows in zip(sums, _unpack(got[peer], grads, len(index)), strict=True):
                into.index_add_(2, index, rows)
        return None, None, *sums


class _Shared(torch.autograd.Function):
    """A tensor that all processes have; its gradient is the sum of all."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def plan(spec: Spec, n: int, world: int) -> Plan:
    """What moves between `world` processes in attention over `n` tokens, whether or not there are such processes.

    Raises
    ------
    UnsupportedError
        For specs that many processes cannot serve: ids of `segments` given at run time, `hops: all` of causal patterns or
        with an alpha of the call.
    """
    return _plan(_spec(spec), int(n), int(world))


_plan = lru_cache(maxsize=64)(Plan)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    spec: Spec,
    group: dist.ProcessGroup | None = None,
    n: int | None = None,
    *,
    inputs: Mapping[str, torch.Tensor] | None = None,
    isa: str = "auto",
    threads: int | None = None,
) -> torch.Tensor:
    """Attention of this process's tokens to those of all processes, with gradients for q, k, v and the inputs.

    All processes of the group call this together, and backwards too, with the same spec.

    Parameters
    ----------
    q, k, v : Tensor `[batch, heads, n_local, head_dim]`, `[batch, kv_heads, n_local, head_dim]`, `[…, value_dim]`
        The rows of this process, `plan(spec, n, world).slices[rank]`, on the CPU, in the dtype of the spec.
    spec : Spec
    group : ProcessGroup, optional
        All processes where it is not given.
    n : int, optional
        Tokens of all processes. Where it is not given, they are asked, which takes a message.
    inputs : dict, optional
        Float32 tensors that score mods and hops read, by name, whole and the same in every process; the gradient that each
        process gets is that of all of them.

    Returns
    -------
    Tensor `[batch, heads, n_local, value_dim]`

    Raises
    ------
    ShapeError
        For tensors that do not fit. Where `n` is given, the other processes learn of it by the timeout of the group.
    RuntimeError
        Where a process of the group ends or does not answer within the group's timeout.
    """
    _spec(spec)
    for name, x, width in (("q", q, spec.head_dim), ("k", k, spec.head_dim), ("v", v, spec.value_dim)):
        heads = spec.heads if name == "q" else spec.kv_heads
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: a {type(x).__name__}; expected a torch tensor")
        if x.device.type != "cpu" or x.dtype is not _DTYPES[spec.dtype]:
            raise ShapeError(f"{name}: a tensor of {x.dtype} on {x.device}; expected {_DTYPES[spec.dtype]} on the CPU")
        if x.dim() != 4 or tuple(x.shape) != (q.shape[0], heads, q.shape[2], width):
            expected = f"[batch, {heads}, n_local, {width}], batch and n_local as of q"
            raise ShapeError(f"{name}: shape {list(x.shape)}; expected {expected}")
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    lengths = None
    if n is None:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        dist.all_gather(lengths, torch.tensor([q.shape[2]]), group=group)
        n = sum(int(length) for length in lengths)
    the_plan = plan(spec, n, world)
    for other, rows in enumerate(the_plan.slices):
        found = int(lengths[other]) if lengths else q.shape[2]
        if (lengths or other == rank) and found != len(rows):
            place = f"{len(rows)} (tokens {rows.start} to {rows.stop} of {n}; plan(spec, n, world).slices says all)"
            raise ShapeError(f"q: process {other} of {world} has {found} rows; expected {place}")
    floats, ids = _sorted(inputs)
    if ids:
        raise ShapeError(f"input `{next(iter(ids))}`: integers; expected float32 tensors, which score mods and hops read")
    floats = {name: _Shared.apply(x.contiguous(), group) if x.requires_grad else x for name, x in floats.items()}
    return _Call(the_plan, spec, rank, group, threads, isa).run(q, k, v, floats)


class _Call:
    """One call in one process."""

    def __init__(self, the_plan: Plan, spec: Spec, rank: int, group, threads: int | None, isa: str) -> None:
        self.plan, self.native, self.spec = the_plan, the_plan._native, spec
        self.rank, self.group, self.threads, self.isa = rank, group, threads, isa

    def run(self, q, k, v, floats):
        initial, hops = self._factors(floats)
        given = self.native.given()
        mods = {name: x for name, x in floats.items() if given is None or name != given[0]}
        if not self.plan.slices[self.rank]:
            # Nothing to compute, but the graph of the others.
            out = v.new_zeros(q.shape[0], self.spec.heads, 0, self.spec.value_dim)
            return out + sum((x.sum() for x in (q, k, v, *floats.values())), torch.zeros(())).to(out.dtype) * 0
        if self.native.is_plain:
            route = self.plan._route(0, self.rank)
            return self._product(0, True, q, *_Gather.apply(route, self.group, k, v), mods)
        own = [x.float() for x in (q, v)]
        group = self.spec.heads // self.spec.kv_heads
        values = own[1].repeat_interleave(group, 1)
        z, keys = None, {}
        for hop, (pattern, (step, restart)) in enumerate(zip(self.native.of_hop, hops, strict=True)):
            new = [] if pattern in keys else [k]
            route = self.plan._route(pattern, self.rank)
            *key, there = _Gather.apply(route, self.group, *new, v if hop == 0 else z)
            if key:
                keys[pattern] = key[0].float()
            if hop == 0:
                z = self._product(pattern, True, own[0], keys[pattern], there.float(), mods)
                step = _times(step, initial)
            else:
                z = self._product(pattern, False, own[0], keys[pattern].repeat_interleave(group, 1), there, mods)
            z = _plus(_times(step, z), _times(restart, values))
        if z is None:
            z = _times(initial, values)
        return (torch.zeros_like(values) if z is None else z).to(q.dtype)

    def _product(self, pattern, first, q, k, v, mods):
        """A V for the queries of this process."""
        route = self.plan._route(pattern, self.rank)
        kernel = self.plan._kernel(pattern, self.rank, first, self.threads, self.isa)
        if route.before or route.behind:
            q = torch.nn.functional.pad(q, (0, 0, route.before, route.behind))
        rest = (kernel, None, None, tuple(mods), {})
        out, _ = _Eager.apply(_unit(q), _unit(k), _unit(v), rest, *mods.values())
        return out[:, :, route.before : route.before + len(route.own)]

    def _factors(self, floats):
        """The factor on V, and for each hop those on A Z and on V; tensors `[heads or 1, 1, 1]` where the call gives them."""
        given = self.native.given()
        if given is None:
            return self.native.factors()
        name, theta = given
        hops = len(self.native.of_hop)
        if name not in floats:
            raise ShapeError(f"input `{name}`: is not given; expected a float32 tensor, which the hops read")
        x = floats[name].float()
        shapes = [(self.spec.heads, hops + 1)] if theta else [(self.spec.heads,), (1,)]
        if tuple(x.shape) not in shapes:
            raise ShapeError(f"input `{name}`: shape {list(x.shape)}; expected {' or '.join(str(list(s)) for s in shapes)}")
        if not bool(torch.isfinite(x).all()) or (not theta and not bool(((x >= 0) & (x <= 1)).all())):
            raise ShapeError(f"input `{name}`: holds {x.tolist()}; expected finite numbers{'' if theta else ' from 0 to 1'}")
        if theta:
            of = [x[:, i, None, None] for i in range(hops + 1)]
            return of[hops], [(1.0, of[hops - 1 - hop]) for hop in range(hops)]
        alpha = x[:, None, None]
        return 1.0, [(1 - alpha, alpha)] * hops


def _times(factor, x):
    """A product; `None`, which stands for no term, where a factor is 0."""
    if x is None or factor is None:
        return None
    for one, other in ((factor, x), (x, factor)):
        if isinstance(one, float) and one in (0.0, 1.0):
            return other if one == 1.0 else None
    return factor * x


def _plus(left, right):
    return right if left is None else left if right is None else left + right
