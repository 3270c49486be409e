"""`--elastic N`: after a failure the job goes on from its last checkpoint, on what is left, up to N times.

    rank or host lost -> agents meet again (torch's dynamic rendezvous) -> who is here, with how many GPUs?
      as before: the same plan                 fewer: rank 0's agent plans the same workload again for what is left
    -> ranks are started by the same agent, the job gets resume=intact where its run has a checkpoint

Hosts that come back join the next round. The agents meet at the first host's store, which must stay. A user's mistake
is not tried again. A plan that leaves a host without ranks ends the job; a profile that the first plan was made with is
not known here, so later plans are made without one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import DistError
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from cost_models.errors import InputError
from cost_models.hardware.cluster import MAX_GPUS, Cluster
from cost_models.hardware.machine import discover
from executor.launch.agent import Team
from executor.launch.hosts import gpus_needed, used_slots
from executor.launch.launch import Launch, prepare
from longvila import checkpoint
from planner.plan_file import Plan

_LAST_CALL_S = 5.0  # for hosts that are alive to join a round


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the first agent of a round decided for all."""

    number: int  # of the round
    plan: str = ""  # a new plan's text; empty: as before
    hosts: tuple[str, ...] = ()
    resume: bool = False
    fault: str = ""  # why nothing can be started


@dataclass(frozen=True)
class Continued:
    """A launch whose job goes on after failures; `team_of` gives this host's part of a round's launch."""

    launch: Launch
    team_of: Callable[[Launch], Team]

    @property
    def restarts(self) -> int:
        return self.launch.request.elastic

    def rounds(self, store: TCPStore, start: Callable[[object, Team], None]) -> RendezvousHandler:
        return _Rounds(store, self.launch, lambda launch: start(launch, self.team_of(launch)))


class _Rounds(RendezvousHandler):
    """The meetings of the agents of one job; `start` is told of each round before its ranks are started."""

    def __init__(self, store: TCPStore, launch: Launch, start: Callable[[Launch], None]) -> None:
        assert launch.host is not None
        self._store, self._first, self._start, self._met = store, launch, start, False
        timeout_s, silence_s = launch.request.timeout_s, launch.request.silence_s
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # ranks meet at the store that is open
        self._inner = DynamicRendezvousHandler.from_backend(
            "elastic", store, C10dRendezvousBackend(store, "elastic"), 1, len(launch.binding.hosts),
            local_addr=launch.host,
            timeout=RendezvousTimeout(
                join=timedelta(seconds=timeout_s), last_call=timedelta(seconds=min(_LAST_CALL_S, silence_s))
            ),
            keep_alive_interval=max(1, round(silence_s / 4)),  # three that fail: an agent that is gone
        )  # fmt: skip

    def next_rendezvous(self) -> RendezvousInfo:
        if not self._met:
            self._wait_for_all()
            self._met = True
        info = self._inner.next_rendezvous()
        here = {"host": self._first.host, "gpus": len(discover().gpus)}
        info.store.set(f"agent/{info.rank}", json.dumps(here))
        agents = [json.loads(info.store.get(f"agent/{rank}")) for rank in range(info.world_size)]
        if info.rank == 0:
            made = self._decide({agent["host"]: agent["gpus"] for agent in agents})
            info.store.set("decision", json.dumps(made.__dict__))
        decision = Decision(**json.loads(info.store.get("decision")))
        if decision.fault:
            raise InputError(decision.fault)
        launch = launch_of(self._first, decision)
        if decision.number:
            how = launch.plan.strategy.describe() + ("" if decision.plan else ", as before")
            point = "from the last checkpoint" if decision.resume else "from the beginning"
            print(f"round {decision.number}: {how}, {point}", file=sys.stderr, flush=True)
        self._start(launch)
        return RendezvousInfo(
            PrefixStore(f"round/{decision.number}", self._store), info.rank, info.world_size,
            RendezvousStoreInfo(self._store.host, self._store.port),
        )  # fmt: skip

    def _wait_for_all(self) -> None:
        """The job begins with all hosts of its plan."""
        self._store.set(f"here/{self._first.host}", "")
        hosts, timeout_s = self._first.binding.hosts, self._first.request.timeout_s
        try:
            self._store.wait([f"here/{host}" for host in hosts], timedelta(seconds=timeout_s))
        except DistError:
            missing = [host for host in hosts if not self._store.check([f"here/{host}"])]
            raise InputError(f"{', '.join(missing)} did not come within {timeout_s:g} s") from None

    def _decide(self, gpus: Mapping[str, int]) -> Decision:
        number, first = self._store.add("rounds", 1) - 1, self._first
        resume = number > 0 and has_checkpoint(first)
        try:
            left = gpus_left(first, gpus)
            if not number or left == gpus_left(first, dict.fromkeys(first.binding.hosts, MAX_GPUS)):
                return Decision(number=number, resume=resume)
            plan = replanned(first.plan, left)
            slots = used_slots(plan)
            if idle := sorted(set(gpus) - {first.binding.host_of_slot[slot] for slot in slots}):
                raise InputError(f"the plan for what is left has no ranks on {', '.join(idle)}")
        except InputError as error:
            return Decision(number=number, fault=f"nothing goes on: {error}")
        hosts = tuple(first.binding.host_of_slot[slot] for slot in slots)
        return Decision(number=number, plan=plan.to_json(), hosts=hosts, resume=resume)

    def num_nodes_waiting(self) -> int:
        return self._inner.num_nodes_waiting()

    def get_backend(self) -> str:
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()

    def get_run_id(self) -> str:
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        return self._inner.shutdown()

    @property
    def use_agent_store(self) -> bool:
        return True


def gpus_left(launch: Launch, gpus: Mapping[str, int]) -> dict[int, int]:
    """Of the GPUs that each slot of the plan needs, those that are here; a CPU host that is here has all its ranks."""
    left = {}
    for slot, host in launch.binding.host_of_slot.items():
        needed = gpus_needed(launch.plan, slot)
        on_cpu = launch.plan.cluster.node(slot).device.architecture == "cpu"
        left[slot] = 0 if host not in gpus else needed if on_cpu else min(needed, gpus[host])
    return left


def replanned(plan: Plan, left: Mapping[int, int]) -> Plan:
    """The plan's workload and objective on slots that have so many GPUs left; InputError if nothing fits."""
    from planner.planning import plan as search

    return search(
        reduced(plan.cluster, left), plan.workload, objective=plan.objective, room=plan.room,
        trust_model=plan.trust_model,
    )  # fmt: skip


def reduced(cluster: Cluster, left: Mapping[int, int]) -> Cluster:
    """Slots keep their places; one that is not named has no host, and so nothing."""
    if not any(left.values()):
        raise InputError("no GPU is left")
    nodes = {}
    for slot in range(cluster.slots):
        node, gpus = cluster.node(slot), left.get(slot, 0)
        if gpus < node.gpus:
            bridges = tuple(pair for pair in node.missing_bridges if pair < gpus // 2)
            nodes[slot] = replace(node, gpus=gpus, missing_bridges=bridges)
    return cluster.override(nodes)


def has_checkpoint(launch: Launch) -> bool:
    """Whether the training run has one to go on from."""
    if launch.request.job != "longvila.train":
        return False
    return bool(checkpoint.complete(Path(str(launch.settings.values.get("run", "runs/train"))) / "checkpoints"))


def launch_of(first: Launch, decision: Decision) -> Launch:
    """The launch of a round on this host."""
    sets: Sequence[str] = ("resume=intact",) if decision.resume else ()
    request = replace(first.request, sets=(*first.request.sets, *sets))
    if decision.plan:
        file = first.run_dir / f"plan-{decision.number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(decision.plan, encoding="utf-8")
        request = replace(request, plan=file, hosts=decision.hosts, host=first.host, node_rank=None)
    return replace(prepare(replace(request, host=first.host)), round=decision.number)
