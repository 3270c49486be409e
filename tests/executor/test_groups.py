"""Groups follow a plan's lists in whatever order they are, on every rank alike; wrong lists are named."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from cost_models.errors import InputError
from executor.groups import AXES, make_groups
from executor.mmsp.exchange import Alone, GroupExchange, all_to_all
from tests.executor.sharded_step import Case, rank_lists
from tests.ranks import run_ranks

SHUFFLED = {
    "ulysses": [[3, 0], [1, 2]],
    "ring": [[3, 1], [0, 2]],
    "context": [[2, 0, 3, 1]],
    "data": [[0], [1], [2], [3]],
    "shard": [[2, 0], [3, 1]],
    "replicate": [[2, 3], [0, 1]],
    "tensor": [[0], [1], [2], [3]],
}


def _collectives():
    """What each collective of the groups gives this rank, with every rank sending its own number."""
    groups = make_groups(SHUFFLED, dist.get_rank(), timeout=timedelta(seconds=77))
    own = torch.tensor([float(dist.get_rank())], requires_grad=True)
    ulysses, ring = groups.ulysses.exchange(), groups.ring.exchange()
    following, previous = (ring.index + 1) % ring.size, (ring.index - 1) % ring.size
    both = all_to_all(own.expand(2), ulysses, [1, 1], [1, 1])
    (both * torch.tensor([1.0, 10.0])).sum().backward()
    mesh = groups.mesh("cpu")
    return {
        "from ulysses": both.tolist(),
        "gradient": own.grad.tolist(),
        "from ring": ring.start_transfer([(following, own.detach())], [(previous, torch.empty(1))]).wait()[0].tolist(),
        "gathered": groups.context.exchange().all_gather(own.detach()).flatten().tolist(),
        "places": groups.places,
        "first of context": groups.context.broadcast(own.detach().clone()).tolist(),
        "largest of ring": groups.ring.reduce(own.detach().clone(), dist.ReduceOp.MAX).tolist(),
        "mesh": (mesh.mesh.tolist(), mesh.get_coordinate()),
        "alone": groups.data.exchange() == Alone(),
        "limits": {_limit_s(group) for group in (groups.ulysses.group, groups.ring.group, groups.context.group)},
    }


def _limit_s(group: dist.ProcessGroup) -> float:
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


def test_the_lists_decide():
    for rank, got in enumerate(run_ranks(_collectives, 4)):
        ulysses = next(ranks for ranks in SHUFFLED["ulysses"] if rank in ranks)
        ring = next(ranks for ranks in SHUFFLED["ring"] if rank in ranks)
        assert got == {
            "from ulysses": ulysses,
            "gradient": [2.0 if ulysses[0] == rank else 20.0],
            "from ring": [ring[ring.index(rank) - 1]],
            "gathered": [2, 0, 3, 1],
            "places": ((1, 1), (0, 1), (0, 0), (1, 0)),
            "first of context": [2],
            "largest of ring": [max(ring)],
            "mesh": ([[2, 0], [3, 1]], {2: (0, 0), 0: (0, 1), 3: (1, 0), 1: (1, 1)}[rank]),
            "alone": True,
            "limits": {77.0},  # not the backend's half hour
        }


@pytest.fixture
def four_ranks(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ring": None}, "no groups for axis 'ring'"),
        ({"data": [[0], [1], [2]]}, "axis 'data' do not hold each of the 4 ranks once"),
        ({"shard": [[0, 1], [1, 2, 3]]}, "axis 'shard' do not hold each of the 4 ranks once"),
        ({"tensor": [[0, 1], [2, 3]]}, "axis 'tensor' has more than one rank"),
        ({"ring": [[3, 0], [1, 2]]}, "not a grid of its ring groups"),
        ({"ring": [[3, 2], [0, 1]]}, "not a grid of its ring groups"),
        ({"context": [[0, 1], [2, 3]], "data": [[0, 2], [1, 3]]}, "not a grid of its ring groups"),
        ({"replicate": [[2, 1], [0, 3]]}, r"replicate group \[2, 1\] does not cross the shard groups"),
        ({"replicate": [[2, 3], [1, 0]]}, r"shard group \[2, 0\] does not cross the replicate groups"),
        (
            {"ulysses": [[0, 1], [2, 3]], "ring": [[0], [1], [2], [3]], "context": [[0, 1], [2, 3]]}
            | {"data": [[0, 2], [3, 1]]},
            r"context group \[0, 1\] does not cross the data groups",
        ),
    ],
)
def test_wrong_lists_are_named(four_ranks, change, message):
    lists = {name: ranks for name, ranks in (SHUFFLED | change).items() if ranks is not None}
    with pytest.raises(InputError, match=message):
        make_groups(lists, 0)


@pytest.mark.parametrize("backend", ["nccl", None])
def test_groups_are_of_the_backend_asked_for(four_ranks, monkeypatch, backend):
    made = []
    monkeypatch.setattr(dist, "new_group", lambda ranks, **options: made.append(options["backend"]))
    make_groups(SHUFFLED, 0, backend)
    assert set(made) == {backend}


class _Counted(dist.Store):
    """A store that answers at once, and counts."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def _count(self, *_):
        self.operations += 1
        return 1

    set = get = add = wait = check = _count


def test_a_rank_makes_its_groups_in_as_many_store_operations_whatever_the_world(monkeypatch):
    """So all ranks together in O(N), also with the barrier that torch can have after each group."""
    monkeypatch.setenv("TORCH_DIST_INIT_BARRIER", "1")
    operations = []
    for ranks in (16, 256):
        store = _Counted()
        dist.init_process_group("fake", store=store, rank=3, world_size=ranks)
        try:
            before = store.operations
            groups = make_groups(rank_lists(Case(ring=ranks // 8, ulysses=8)), 3)
            operations.append(store.operations - before)
            assert (groups.ring.size, groups.ulysses.size, groups.context.size) == (ranks // 8, 8, ranks)
        finally:
            dist.destroy_process_group()
    assert operations[0] == operations[1] <= 6 * 3


def test_lists_of_the_grid():
    assert set(rank_lists(Case(ulysses=2, ring=2))) == set(AXES)


def test_on_gloo_receives_are_started_before_sends(monkeypatch):
    """Else the word that a buffer is there waits behind what its owner sends, and both ways take turns."""
    started = []
    monkeypatch.setattr(dist, "get_backend", lambda group: "gloo")
    monkeypatch.setattr(dist, "P2POp", lambda call, buffer, rank, group: (call is dist.irecv, rank, buffer.tolist()))
    monkeypatch.setattr(dist, "batch_isend_irecv", lambda operations: started.append(operations) or [])
    three = GroupExchange(group=None, ranks=(4, 7, 9), index=1)
    three.start_transfer([(2, torch.ones(1))], [(0, torch.zeros(1))])
    got = three.all_to_all(torch.arange(4.0), [1, 1, 2], [0, 1, 0])
    assert got.tolist() == [1.0]  # its own; who sends nothing is not waited for
    assert started == [
        [(True, 4, [0.0]), (False, 9, [1.0])],
        [(False, 9, [2.0, 3.0]), (False, 4, [0.0])],
    ]
    started.clear()
    three.all_gather(torch.ones(1))
    calls = [(receives, rank) for ((receives, rank, _),) in started]
    assert calls == [(True, 4), (True, 4), (False, 9), (False, 9)]  # round the ring, all receives before any send
