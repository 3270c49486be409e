"""Process groups exactly as a plan lists them, and this rank's place in each.

    {"ulysses": [[0, 1], [2, 3]], "ring": [[0, 2], [1, 3]], "context": [[0, 1, 2, 3]], …}
                       rank 2 -> ulysses (2, 3) index 0, ring (0, 2) index 1, context (0, 1, 2, 3) index 2

Every rank creates its own groups alone, in the order of the axes below: a constant number of operations on the meeting
store for each rank, whatever the number of groups (where every rank creates every group, it is the square). The lists
decide: no rank order is assumed, neither here nor by those who use the result. The ring index is the rank's place in
its ring list, the ulysses index that in its ulysses list. Leaves out: `init_process_group` and its time limit
(the launcher's), tensor and pipeline axes (the executor runs plans where they are 1).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from cost_models.errors import InputError
from executor.mmsp.exchange import Alone, Exchange, GroupExchange

RankLists = Sequence[Sequence[int]]


def digest(*parts: Tensor | None) -> int:
    """Of tensors, by place, shape and content: what `Axis.alike` compares.

    >>> digest(torch.tensor([1, 2]), None) == digest(None, torch.tensor([1, 2]))
    False
    """
    found = 0
    for place, part in enumerate(parts):
        if part is not None:
            found = zlib.crc32(f"{place} {list(part.shape)}".encode() + part.cpu().numpy().tobytes(), found)
    return found


@dataclass(frozen=True, kw_only=True)
class Axis:
    """This rank's group along one axis; `group` None means that the rank is alone and sends nothing."""

    name: str
    ranks: tuple[int, ...]
    index: int
    group: dist.ProcessGroup | None

    @property
    def size(self) -> int:
        return len(self.ranks)

    def exchange(self) -> Exchange:
        if self.group is None or self.size == 1:
            return Alone()
        return GroupExchange(group=self.group, ranks=self.ranks, index=self.index)

    def reduce(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Reduce in place; every member gets the same result."""
        if self.size > 1:
            dist.all_reduce(value, operation, group=self.group)
        return value

    def alike(self, number: int, device: torch.device) -> bool:
        """Whether all members have this number, which fits in 63 bits."""
        bounds = torch.tensor([number, -number], device=device)
        self.reduce(bounds, dist.ReduceOp.MAX)
        return bool(bounds[0] == -bounds[1])

    def broadcast(self, value: Tensor, member: int = 0) -> Tensor:
        """Overwrite `value` in place with that of one member."""
        if self.size > 1:
            dist.broadcast(value, src=self.ranks[member], group=self.group)
        return value


@dataclass(frozen=True, kw_only=True)
class Groups:
    """All of this rank's groups; `places[i]` is the (ring index, ulysses index) of member i of the context group."""

    ulysses: Axis
    ring: Axis
    context: Axis
    data: Axis
    shard: Axis
    replicate: Axis
    places: tuple[tuple[int, int], ...]
    mesh_ranks: tuple[tuple[int, ...], ...]  # [replica][shard]: the ranks that hold this rank's parameters

    def mesh(self, device_type: str) -> DeviceMesh:
        """The (replicate, shard) mesh of parameters, gradients and optimizer state, on the groups made here.

        One axis (shard) if nothing is replicated.
        """
        assert self.replicate.group is not None and self.shard.group is not None
        if self.replicate.size == 1:
            return DeviceMesh.from_group(self.shard.group, device_type, mesh_dim_names=("shard",))
        return DeviceMesh.from_group(
            [self.replicate.group, self.shard.group],
            device_type,
            mesh=torch.tensor(self.mesh_ranks),
            mesh_dim_names=("replicate", "shard"),
        )


AXES = ("ulysses", "ring", "context", "data", "shard", "replicate")


def make_groups(
    lists: Mapping[str, RankLists], rank: int, backend: str | None = None, timeout: timedelta | None = None
) -> Groups:
    """Collective over all processes: the groups of a plan. `lists` maps each of `AXES` to lists of global ranks.

    `backend` is that of these groups alone; None means the world's. Where the world also has a backend for CPU tensors,
    these groups need not connect over it. `timeout` is that of one collective; without it torch takes its default (30
    minutes for gloo, 10 for NCCL), whatever the world has.
    """
    world = dist.get_world_size()
    _check(lists, world)
    axes: dict[str, Axis] = {}
    for name in AXES:
        mine = _list_of(lists[name], rank)
        # Names of groups are hashes of their ranks and of how many a rank has: members must have made equally many. A
        # device mesh wants a group also of one member.
        wanted = any(len(ranks) > 1 for ranks in lists[name]) or name in ("shard", "replicate")
        group = None
        if wanted:
            group = dist.new_group(
                list(mine), timeout=timeout, backend=backend, sort_ranks=False, use_local_synchronization=True,
                group_desc=name,
            )  # fmt: skip
        axes[name] = Axis(name=name, ranks=mine, index=mine.index(rank), group=group)
    return Groups(
        **axes,
        places=tuple((_index(lists["ring"], r), _index(lists["ulysses"], r)) for r in axes["context"].ranks),
        mesh_ranks=tuple(_list_of(lists["shard"], r) for r in axes["replicate"].ranks),
    )


def _check(lists: Mapping[str, RankLists], world: int) -> None:
    for name in AXES:
        if name not in lists:
            raise InputError(f"the plan lists no groups for axis {name!r}; it needs {', '.join(AXES)}")
    for name, groups in lists.items():
        if sorted(rank for ranks in groups for rank in ranks) != list(range(world)):
            raise InputError(f"groups of axis {name!r} do not hold each of the {world} ranks once: {list(groups)}")
        if name not in AXES and any(len(ranks) > 1 for ranks in groups):
            raise InputError(f"axis {name!r} has more than one rank; the executor runs {', '.join(AXES)} only")
    for context in lists["context"]:
        _check_context(context, lists)
    # Who reads one row, and who holds one shard of the parameters: gradients of others must never be mixed in.
    for name, along in (("data", "context"), ("shard", "replicate"), ("replicate", "shard")):
        place = {rank: index for ranks in lists[name] for index, rank in enumerate(ranks)}
        for ranks in lists[along]:
            if len({place[rank] for rank in ranks}) > 1:
                raise InputError(
                    f"{along} group {list(ranks)} does not cross the {name} groups {list(lists[name])}: its members "
                    f"must stand at one place of their {name} groups"
                )


def _check_context(context: Sequence[int], lists: Mapping[str, RankLists]) -> None:
    """Refuse a context group that is not a full grid of ring groups and ulysses groups."""
    rings, ulysses = ({_list_of(lists[name], rank) for rank in context} for name in ("ring", "ulysses"))
    places = {(_index(lists["ring"], rank), _index(lists["ulysses"], rank)) for rank in context}
    sizes = {len(ring) for ring in rings}, {len(ranks) for ranks in ulysses}
    inside = all(set(ranks) <= set(context) for ranks in rings | ulysses)
    full = len(places) == len(context) == max(sizes[0]) * max(sizes[1])
    aligned = all(len({_index(lists["ring"], rank) for rank in ranks}) == 1 for ranks in ulysses) and all(
        len({_index(lists["ulysses"], rank) for rank in ranks}) == 1 for ranks in rings
    )
    if not (inside and full and aligned and len(sizes[0]) == len(sizes[1]) == 1):
        raise InputError(
            f"context group {list(context)} is not a grid of its ring groups {sorted(rings)} and ulysses groups "
            f"{sorted(ulysses)}: member (ring i, ulysses j) must exist once, with i in all its ulysses group and j in "
            "all its ring"
        )


def _list_of(groups: RankLists, rank: int) -> tuple[int, ...]:
    return next(tuple(ranks) for ranks in groups if rank in ranks)


def _index(groups: RankLists, rank: int) -> int:
    return _list_of(groups, rank).index(rank)
