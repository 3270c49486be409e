"""What `--fix` pins of a strategy, and the strategy that pins alone make.

    ulysses=8,recompute=full   ->   {"ulysses": 8, "recompute": "full"}   ->   Strategy

Every fault is one line that names the flag, the pin and its legal values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cost_models import strict
from cost_models.errors import InputError
from cost_models.strategy import PINS, RECOMPUTES, LayerRange, Strategy
from planner.question.options import whole

if TYPE_CHECKING:
    from planner.plan_file import Plan


def read_pins(text: str | None, flag: str = "--fix") -> dict[str, Any]:
    """`ulysses=8,recompute=full` -> {"ulysses": 8, "recompute": "full"}.

    >>> read_pins("ulysses=8,recompute=full,loss_chunk_tokens=none")
    {'ulysses': 8, 'recompute': 'full', 'loss_chunk_tokens': None}
    """
    fixed: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise InputError(f"{flag} {item!r} is not name=value (as in ulysses=8,recompute=full)")
        if name not in PINS:
            raise InputError(f"{flag} {name!r} is unknown; {strict.nearest(name, PINS)}")
        if name in fixed:
            raise InputError(f"{flag} {name!r} is given twice")
        fixed[name] = _pin(name, value, flag)
    return fixed


def pins_of(plan: Plan, where: str) -> dict[str, Any]:
    """What a plan's user pinned, read as it was typed."""
    return read_pins(",".join(f"{name}={value}" for name, value in (plan.fixed or {}).items()), where)


def _pin(name: str, value: str, flag: str) -> Any:
    if name in ("ring_kind", "schedule", "grad_ring_dtype", "offload_states", "ssd", "ssd_pass"):
        return value
    if name == "recompute":
        if value not in RECOMPUTES:
            raise InputError(f"{flag} recompute={value!r} is unknown; {strict.nearest(value, RECOMPUTES)}")
        return value
    if name in ("loss_chunk_tokens", "mlp_chunk_tokens", "attention_chunk_tokens") and value == "none":
        return None
    return whole(value, f"{flag} {name}=", least=0 if name == "zero" else 1)


def strategy_of(fixed: Mapping[str, Any], layers: int) -> Strategy:
    """A complete strategy from pins: what is not given is 1; shard defaults to all ranks, zero to 3."""
    given = dict(fixed)
    recompute = given.pop("recompute", "none")
    ranks = given.get("data", 1) * given.get("ring", 1) * given.get("ulysses", 1)
    given.setdefault("shard", ranks)
    given.setdefault("zero", 3 if given["shard"] > 1 else 0)
    return Strategy(layers=(LayerRange(recompute=recompute, count=layers),), **given)
