"""What `cost_models/layer/launches.py` counts for a decoder layer is what the executor's step really calls."""

from collections import Counter
from dataclasses import replace

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from cost_models import Model, Strategy, Workload
from cost_models.layer.launches import GATHER_OPERATORS, REDUCE_OPERATORS, layer_calls
from cost_models.layer.recompute import EXECUTED
from cost_models.layer.sizes import RankSizes
from longvila.config import LongVilaConfig
from tests.executor import sharded_step
from tests.executor.sharded_step import Case, make_rows, make_sharding, with_own_frames
from tests.ranks import run_ranks

FREE = {
    "view", "_unsafe_view", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze", "permute", "alias",
    "detach", "split", "split_with_sizes", "unbind", "as_strided", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "set_", "record_stream", "promote_types", "_record_function_enter_new",
    "_record_function_exit", "_local_scalar_dense", "resize_", "chunk", "_reshape_alias", "is_same_size",
}  # fmt: skip
"""Views, allocations and records: no kernel."""
COLLECTIVES = {"_allgather_base_", "_reduce_scatter_base_", "alltoall_base_", "send", "recv_", "allreduce_"}
ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
}


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function._schema.name.split("::")[1]] += 1
        return function(*args, **(kwargs or {}))


def _calls(case: Case, layers: int, policy: str) -> tuple[Counter, Counter]:
    """Calls of one microbatch, forward and backward."""
    case = replace(case, recompute=((policy, layers),))
    sharding = make_sharding(case)
    config = sharded_step.LongVilaConfig
    sharded_step.LongVilaConfig = lambda llm, **more: LongVilaConfig(llm={**llm, "num_hidden_layers": layers}, **more)
    try:
        model = sharding.wrap(sharded_step.make_model(case, sharding.attention))
    finally:
        sharded_step.LongVilaConfig = config
    (batch, pixels), model = make_rows(case)[0], model.train()
    sharding.before_microbatch(model, last=True)
    with Counting() as forward:
        loss = model(with_own_frames(replace(batch, most_frames=batch.frames), pixels, sharding), sharding)
    with Counting() as backward:
        sharding.token_mean(loss, 10).backward()
    return forward.calls, backward.calls


def _of_a_layer(case: Case, policy: str) -> list[tuple[float, float, float]]:
    """(operators, attention calls, collectives) that a further layer adds, forward and backward."""
    found = []
    for few, many in zip(_calls(case, 1, policy), _calls(case, 2, policy), strict=True):
        added = {name: many[name] - few[name] for name in many if name not in FREE}
        collectives = sum(count for name, count in added.items() if name in COLLECTIVES)
        attention = sum(count for name, count in added.items() if name in ATTENTION)
        found.append((sum(added.values()) - collectives - attention, attention, collectives))
    return found


BASE = Case(dtype="float32", param="bfloat16", frames=((48,),))


CASES = [(2, 1, "none"), (1, 2, "none"), *((2, 2, policy) for policy in EXECUTED)]


def _of_all_cases() -> list[list[tuple[float, float, float]]]:
    """On four ranks; where a context has two, two replicas compute the same row."""
    return [
        _of_a_layer(replace(BASE, data=4 // (ulysses * ring), ulysses=ulysses, ring=ring), policy)
        for ulysses, ring, policy in CASES
    ]


@pytest.fixture(scope="module")
def counted():
    """One start of the ranks for all cases."""
    return dict(zip(CASES, run_ranks(_of_all_cases, 4)[0], strict=True))


@pytest.mark.parametrize(("ulysses", "ring", "policy"), CASES)
def test_calls_of_a_layer(counted, ulysses, ring, policy):
    forward, backward = counted[ulysses, ring, policy]
    hops = ring - 1
    layout = Strategy(ulysses=ulysses, ring=ring, shard=ulysses * ring)
    sizes = RankSizes(Workload(Model.load("longvila-tiny"), context_tokens=4096), layout)
    forth, back = layer_calls(sizes), layer_calls(sizes, policy)
    assert forward[0] == pytest.approx(forth.operators + hops * forth.hops + GATHER_OPERATORS, rel=0.05)
    expected = back.operators + hops * back.hops + GATHER_OPERATORS + REDUCE_OPERATORS
    assert backward[0] == pytest.approx(expected, rel=0.05)
    runs = 2 if policy == "full" else 1
    assert (forward[1], backward[1]) == (ring, ring * runs)
    # A hop sends and receives once, its gradients do too; gloo's exchange sends to each other member and receives.
    exchanges, sends = 2 * 2 * (ulysses - 1), 2 * hops
    assert forward[2] == 1 + exchanges + sends
    again_exchanged = exchanges * (policy in ("full", "all_but_attention"))
    assert backward[2] == 2 + exchanges + again_exchanged + 2 * sends + sends * (policy == "full")
