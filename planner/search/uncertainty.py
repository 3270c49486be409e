"""What a step takes where the world is not as modelled: a few layouts in a few scenarios, priced together.

    network   transfers between nodes reach 30% less or more than modelled
    inside    transfers inside nodes, slower or faster by the band of their link
    kernels   attention, products, or what memory limits, each slower or faster by its band
    node      one node in use computes a tenth slower, and so all that wait for it

A scenario multiplies the seconds of one cause, and the step is folded again as `pricing.price` folds it: what stays
behind computation stays hidden. Seconds, shape (layouts, scenarios). Left out: two causes at once; memory, which none
changes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from cost_models.bands import quantile, source_domain
from cost_models.basis import KERNELS, Board
from cost_models.certificate import certificate
from cost_models.framework import OURS, Framework
from cost_models.hardware.placement import Placement
from cost_models.models.model import LayerKind
from cost_models.number import Number
from cost_models.program import Op
from cost_models.strategy import VARIED, LayerRange, Strategy, stacked
from cost_models.timing.cluster_costs import ClusterCosts
from cost_models.timing.collectives import Collectives
from cost_models.timing.kernels import Kernels
from cost_models.timing.paths import Path, Paths
from cost_models.workload import Workload
from planner.search.layout_prices import policy_prices
from planner.search.policy_prices import Policy

NETWORK = 0.3
"""Share by which the network may reach less or more: other jobs, routing, what NCCL makes of the fabric. Estimate."""
STRAGGLER = 0.1
"""Share of its speed that a slow node lacks; from there on a job counts as straggling in arXiv 2505.05713."""
_BUSES = ("bus_all_to_all_s_per_byte", "bus_send_s_per_byte", "bus_gather_s_per_byte")
_NETWORK = ("all_to_all_s_per_byte", "send_s_per_byte", "gather_s_per_byte", "all_reduce_s_per_byte")
_WORDS = ("attention", "products", "norms and merges")
_ENDS = ("slower", 0.9), ("faster", 0.1)
"""Ends of the 80% bands, as quantiles of ln(measured / predicted)."""
Floats = NDArray[np.float64]


class Scenario(Struct, frozen=True, kw_only=True):
    """Factors on the seconds of each cause; 1 is as modelled."""

    words: str
    network: float = 1.0
    inside: float = 1.0
    kernels: tuple[float, ...] = (1.0,) * len(KERNELS)  # in the order of `KERNELS`
    node: float = 1.0


AS_MODELLED = Scenario(words="all as modelled")


def scenarios(board: Board, inside: Collectives) -> tuple[Scenario, ...]:
    """As modelled first, then one cause at a time."""
    found = [AS_MODELLED]
    for word, rate in (("slower", 1 - NETWORK), ("faster", 1 + NETWORK)):
        found.append(Scenario(words=f"network {NETWORK:.0%} {word}", network=1 / rate))
    for word, end in _ENDS:
        factor = _factor(source_domain("inside" if inside.many_channels else "pcie", board), end)
        found.append(Scenario(words=f"links inside nodes {_off(factor)} {word}", inside=factor))
    for place, name in enumerate(KERNELS):
        for word, end in _ENDS:
            factor = _factor(source_domain(name, board), end)
            each = tuple(factor if i == place else 1.0 for i in range(len(KERNELS)))
            found.append(Scenario(words=f"{_WORDS[place]} {_off(factor)} {word}", kernels=each))
    found.append(Scenario(words="one slow node", node=1 / (1 - STRAGGLER)))
    return tuple(found)


def _factor(domain: str, probability: float) -> float:
    """Seconds over the modelled ones at the end of a domain's band, about its median: a bias is no doubt."""
    errors = certificate().domain(domain).quantiles
    return math.exp(quantile(errors, probability) - quantile(errors, 0.5))


def _off(factor: float) -> str:
    return f"{abs(factor - 1):.0%}"


def seconds_in(
    workload: Workload,
    costs: ClusterCosts,
    layouts: Sequence[tuple[Strategy, Placement]],
    several: Sequence[Scenario],
    framework: Framework = OURS,
) -> Floats:
    """Step seconds of each layout in each scenario, shape (layouts, scenarios)."""
    found = np.empty((len(layouts), len(several)))
    plain: dict[str, Any] = {"layers": (), **dict.fromkeys(VARIED, 1), "zero": 3}
    alike = [(costs.runs(one.ranks, placement), replace(one, **plain)) for one, placement in layouts]
    for used in dict.fromkeys(alike):
        mine = [index for index, other in enumerate(alike) if other == used]
        found[mine] = _of_runs(workload, costs, used[0], [layouts[index] for index in mine], several, framework)
    return found


def _of_runs(
    workload: Workload,
    costs: ClusterCosts,
    runs: tuple[int, ...],
    layouts: Sequence[tuple[Strategy, Placement]],
    several: Sequence[Scenario],
    framework: Framework,
) -> Floats:
    """Of layouts that use nodes of the same runs."""
    policies, counts = _layers_by_choice([strategy for strategy, _ in layouts], workload.model.layer_kinds)
    factors = {name: np.array([one.node * one.kernels[place] for one in several]) for place, name in enumerate(KERNELS)}
    network, inside = (np.array([getattr(one, cause) for one in several]) for cause in ("network", "inside"))
    each = [costs.paths(strategy, placement).axes for strategy, placement in layouts]
    axes = {axis: _scaled([paths[axis] for paths in each], network, inside) for axis in each[0]}
    many = _as_column(stacked([strategy for strategy, _ in layouts]))
    paths = costs.assembled(runs, axes, many.ranks)
    priced = policy_prices(
        workload,
        many,
        _Slowed(costs.kernels(runs, framework.measured_attention(workload)), factors),
        _SlowedPaths(**{one.name: getattr(paths, one.name) for one in fields(paths) if one.init}, slowed=inside),
        policies,
        costs.devices(runs)[0],
        framework=framework,
    )
    return priced.seconds_of(counts[:, None, :])


def _layers_by_choice(
    strategies: Sequence[Strategy], kinds: Sequence[LayerKind]
) -> tuple[tuple[Policy, ...], NDArray[np.int64]]:
    """(policies in use, layers of each kind and policy by strategy, in the order of `PolicyPrices.choices`)."""
    each = [
        [_policy(part) for part in strategy.layer_ranges(len(kinds)) for _ in range(part.count)]
        for strategy in strategies
    ]
    policies = tuple(dict.fromkeys(policy for several in each for policy in several))
    places = {choice: place for place, choice in enumerate(itertools.product(dict.fromkeys(kinds), policies))}
    counts = np.zeros((len(strategies), len(places)), dtype=np.int64)
    for row, several in enumerate(each):
        for choice in zip(kinds, several, strict=True):
            counts[row, places[choice]] += 1
    return policies, counts


def _policy(part: LayerRange) -> Policy:
    return part.recompute if part.offload == "none" else replace(part, count=1)


def _as_column(strategies: Strategy) -> Strategy:
    """Degrees of shape (layouts, 1), for a second axis of scenarios."""
    return strategies.varied(**{name: getattr(strategies, name)[:, None] for name in VARIED})


def _scaled(paths: Sequence[Path], network: Floats, inside: Floats) -> Path:
    """The paths of one axis as arrays of layouts and scenarios."""
    columns = {name: np.array([getattr(path, name) for path in paths])[:, None] for name in Path.__struct_fields__}
    columns |= {name: columns[name] * network for name in _NETWORK} | {name: columns[name] * inside for name in _BUSES}
    return Path(**columns)


@dataclass(frozen=True, kw_only=True)
class _SlowedPaths(Paths):
    """Paths whose seconds inside a domain are multiplied."""

    slowed: Floats

    def inside_s(self, op: Op, path: Path, size: Number) -> Number:
        return super().inside_s(op, path, size) * self.slowed


class _Slowed(Kernels):
    """Kernels whose seconds are multiplied by operation: by kind and scenario."""

    def __init__(self, kernels: Kernels, factors: dict[str, Floats]) -> None:
        self.kernels, self.factors, self.device = kernels, factors, kernels.device
        self.scans = kernels.scans

    @property
    def measured(self) -> Kernels:
        return self.kernels

    def gemm_s(self, *args: Any, **kwargs: Any) -> Number:
        return self.kernels.gemm_s(*args, **kwargs) * self.factors["products"]

    def grouped_s(self, *args: Any, **kwargs: Any) -> Number:
        return self.kernels.grouped_s(*args, **kwargs) * self.factors["products"]

    def attention_s(self, *args: Any, **kwargs: Any) -> Number:
        return self.kernels.attention_s(*args, **kwargs) * self.factors["attention"]

    def memory_bound_s(self, *args: Any, **kwargs: Any) -> Number:
        return self.kernels.memory_bound_s(*args, **kwargs) * self.factors["elementwise"]

    def framework_s(self, unit: str) -> float:
        return self.kernels.framework_s(unit)
