"""Memory that is estimated, not counted: contexts, buffers of process groups, the allocator's slack.

NCCL (src/include/device.h, 2.20): a channel's buffers for one peer are 4 MiB (NCCL_BUFFSIZE, protocol Simple),
8 steps x 8 lines x 512 threads x 16 B = 0.5 MiB (LL) and 8 x 120 x 640 x 8 B = 4.69 MiB (LL128): 9.19 MiB.
"""

import pytest

from cost_models import Cluster, Model, Strategy, Workload, price

NODE = Cluster.load("dgx-h100", nodes=1)
WORK = Workload(Model.load("longvila-8b"), context_tokens=2**17)
MIB = 2**20


@pytest.mark.parametrize(
    ("layout", "groups"),
    [
        (Strategy(), 0),
        (Strategy(ulysses=8, shard=8), 2),
        (Strategy(ulysses=4, ring=2, shard=8), 3),
        (Strategy(ulysses=4, ring=2, shard=4), 4),  # and the replicas
        (Strategy(tensor=2, ulysses=2, pipeline=2, shard=2), 4),
    ],
)
def test_every_group_of_several_ranks_has_buffers(layout, groups):
    """192 MiB are 21 channels with one peer each; a ring or tree of NVLink has 16 to 24."""
    channel = 4 * MIB + 8 * 8 * 512 * 16 + 8 * 120 * 640 * 8
    assert 16 * channel < 192 * MIB < 24 * channel
    assert price(NODE, WORK, layout).memory["communication"] == groups * 201_326_592


def test_a_cpu_s_groups_have_small_buffers():
    """gloo: pairs of sockets, about a MiB."""
    here = Cluster.load("local", gpus=2)
    work = Workload(Model.load("longvila-tiny"), context_tokens=4096)
    assert price(here, work, Strategy(ulysses=2, shard=2)).memory["communication"] == 2 * 1_048_576


def test_fragments_are_three_hundredths_of_what_moves_and_the_context_is_the_kind_of_device_s():
    """CUDA context and cuBLAS workspaces 640 MiB (nvidia-smi of an idle PyTorch process: 450 to 700); a CPU's
    interpreter with its libraries 450 MiB."""
    for cluster, name, context in ((NODE, "longvila-8b", 640), (Cluster.load("local", gpus=2), "longvila-tiny", 450)):
        found = price(cluster, Workload(Model.load(name), context_tokens=8192), Strategy(ulysses=2, shard=2)).memory
        moving = sum(found[part] for part in ("gathered", "activations", "working", "logits", "vision"))
        assert found["fragments"] == pytest.approx(0.03 * moving, abs=2)
        assert found["context"] == context * MIB


def test_three_levels_each_above_the_one_before():
    memory = price(NODE, WORK, Strategy(ulysses=8, shard=8)).memory
    assert memory.reserved_bytes == memory.allocated_bytes + memory["fragments"]
    assert memory.device_bytes == memory.reserved_bytes + memory["communication"] + memory["context"]


def test_a_cache_holds_keys_and_values_of_every_layer():
    """1,048,576 tokens over 8 ranks, 8 key heads of 128 each, two tensors, 2 bytes, 32 layers: 16 GiB."""
    work = Workload(WORK.model, context_tokens=2**20, mode="decode")
    assert price(NODE, work, Strategy(ulysses=8, shard=8)).memory["cache"] == 2**17 * 2 * 1024 * 2 * 32
