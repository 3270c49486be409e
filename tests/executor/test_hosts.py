"""Slots to hosts, and (host, local rank) to the plan's rank, whatever order the processes come in."""

from dataclasses import replace

import numpy as np
import pytest

from cost_models import Cluster, InputError, Placement, Strategy
from cost_models.hardware.device import Device
from cost_models.hardware.machine import Gpu, Host, discover
from cost_models.workload import Precision
from executor.launch.dry_run import start_lines
from executor.launch.hosts import bind, used_slots
from executor.launch.launch import Request, prepare
from tests.executor.planned import make_plan, save_plan

H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, free_bytes=79 * 2**30)
A100 = Gpu(name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * 2**30, free_bytes=79 * 2**30)


def _host(name: str, gpu: Gpu) -> Host:
    return Host(name=name, cores=64, memory_bytes=2**40, free_bytes=2**40, gpus=(gpu,) * 8)


def _shuffled_plan():
    """16 ranks over two nodes, dealt like cards."""
    cluster = Cluster.load("dgx-h100", nodes=2)
    order = np.random.default_rng(0).permutation(16)
    placement = Placement(slot_of_rank=order // 8, gpu_of_rank=order % 8)
    return make_plan(Strategy(ring=2, ulysses=8, shard=16), cluster=cluster, placement=placement)


def test_a_seat_is_found_from_host_and_local_rank():
    plan = _shuffled_plan()
    binding = bind(plan, ["b", "a"])
    assert binding.host_of_slot == {0: "b", 1: "a"}
    for host, slot in (("b", 0), ("a", 1)):
        for local in range(8):
            seat = binding.seat(host, local)
            assert plan.placement.slot_of_rank[seat.rank] == slot
            assert plan.placement.gpu_of_rank[seat.rank] == seat.gpu == local
    assert sorted(seat.rank for host in "ab" for seat in binding.on(host)) == list(range(16))
    with pytest.raises(InputError, match="--nproc-per-node=8"):
        binding.seat("a", 8)


def test_hosts_are_bound_to_slots_of_their_class():
    cluster = Cluster.load("dgx-h100", nodes=2)
    mixed = cluster.override({0: replace(cluster.node(0), device=Device.load("a100-sxm-80gb"))})
    plan = make_plan(Strategy(ring=2, ulysses=8, shard=16), cluster=mixed)
    known = {"x": _host("x", H100), "y": _host("y", A100)}
    assert bind(plan, ["x", "y"], known).host_of_slot == {0: "y", 1: "x"}
    assert bind(plan, ["x", "z"], {"x": known["x"]}).host_of_slot == {0: "z", 1: "x"}
    with pytest.raises(InputError, match="fits none of the plan's free slots"):
        bind(plan, ["x", "y"], {"x": known["x"], "y": _host("y", H100)})


@pytest.mark.parametrize(
    ("names", "message"), [(["a"], "uses 2 hosts"), (["a", "a"], "twice"), (["a", "b", "c"], "names 3")]
)
def test_wrong_hosts_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        bind(_shuffled_plan(), names)


def test_only_used_slots_need_a_host():
    cluster = Cluster.load("dgx-h100", nodes=4)
    placement = Placement(slot_of_rank=np.full(8, 2), gpu_of_rank=np.arange(8))
    plan = make_plan(Strategy(ulysses=8, shard=8), cluster=cluster, placement=placement)
    assert used_slots(plan) == (2,)
    assert bind(plan, ["only"]).host_of_slot == {2: "only"}


def test_a_plan_that_names_its_hosts_is_bound_to_them(tmp_path):
    """`plan --hosts`: nobody has to name them again; `executor launch --hosts` still decides."""
    cluster = replace(Cluster.load("dgx-h100", nodes=4), hosts=("a", "b", "c", "d"))
    placement = Placement(slot_of_rank=np.repeat([1, 3], 8), gpu_of_rank=np.tile(np.arange(8), 2))
    layout = Strategy(ring=2, ulysses=8, shard=16)
    path = save_plan(tmp_path, layout, cluster=cluster, placement=placement, precision=Precision())
    launch = prepare(Request(plan=path))
    assert launch.binding.host_of_slot == {1: "b", 3: "d"} and launch.host is None
    assert prepare(Request(plan=path, hosts=("x", "y"))).binding.hosts == ("x", "y")


def test_a_plan_for_another_host_is_not_started_here(tmp_path):
    layout = Strategy(ulysses=2, shard=2)
    here, local = discover().name, Cluster.load("local", gpus=2)
    there = save_plan(tmp_path, layout, cluster=replace(local, hosts=("another",)))
    launch = prepare(Request(plan=there))
    assert launch.host is None and "This plan runs on another. Run there:" in start_lines(launch)
    assert prepare(Request(plan=save_plan(tmp_path, layout, cluster=replace(local, hosts=(here,))))).host == here
