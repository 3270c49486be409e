"""The plans of a whole recipe: each stage planned by itself on one cluster, its hours and GPU-hours.

    recipes/longvila-8b.yaml: lengths, rows, steps --solve--> seconds of a step x steps x GPUs -> GPU-hours

GPU-hours count every GPU of the cluster, used or not; failures, reading data and checkpoints are left out. A stage
without `steps` has a price for its step alone. What is published stands beside what is priced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.models.model import Model
from cost_models.profile import Profile
from cost_models.room import DEFAULT_ROOM, Room
from cost_models.workload import Part, Workload
from planner.solve import NothingFits, solve

FOLDER = resources.files("planner.reverse") / "recipes"


@dataclass(frozen=True, kw_only=True)
class RecipeStage:
    name: str
    context: int  # tokens of a row
    rows: int  # of a step
    frames: int = field(default=0, metadata=strict.OPTIONAL)  # of a row
    steps: int = field(default=0, metadata=strict.OPTIONAL)  # 0: not published
    lora_rank: int = field(default=0, metadata=strict.OPTIONAL)  # beside it embeddings and norms are trained
    trained: tuple[Part, ...] = field(default=("llm", "projector", "tower"), metadata=strict.OPTIONAL)
    published_gpu_hours: float = field(default=0.0, metadata=strict.OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Published:
    """GPU-hours that are published of several stages together."""

    stages: str  # how their names begin
    gpu_hours: float
    what: str  # of which hardware and data

    def beside(self, found: Sequence[Planned]) -> str:
        """The stages' sum, as far as they have a plan, and what is published."""
        priced = sum(one.gpu_hours for one in found if one.stage.startswith(self.stages))
        return f"{priced:,.0f} GPU-hours (published: about {self.gpu_hours:,.0f} {self.what})"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages of a published training, with its GPU-hours."""

    title: str
    why: str
    model: str
    stages: tuple[RecipeStage, ...]
    published: tuple[Published, ...] = field(default=(), metadata=strict.OPTIONAL)

    @classmethod
    def load(cls, name: str) -> Recipe:
        """
        >>> first, *_, last = Recipe.load("longvila-8b").stages
        >>> first.trained, last.frames
        (('projector',), 512)
        """
        known = sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir())
        if name not in known:
            raise InputError(f"--recipe {name!r} is unknown; {strict.nearest(name, known)}")
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        return strict.read(cls, strict.parse_yaml(text, name), f"recipe {name}")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One stage: its plan in words, and its time; `problem` says why there is none."""

    stage: str
    plan: str = ""
    step_s: float = 0.0
    hours: float = 0.0
    gpu_hours: float = 0.0
    dollars: float | None = None
    published_gpu_hours: float = 0.0
    problem: str = ""


def plan_recipe(
    recipe: Recipe,
    cluster: Cluster,
    *,
    like: Workload,
    fixed: Mapping[str, object],
    dollars_per_gpu_hour: float | None = None,
    profile: Profile | None = None,
    room: Room = DEFAULT_ROOM,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Planned]:
    """Every stage on the cluster; `like` has the precision and the kernel."""
    found, model = [], Model.load(recipe.model)
    for stage in recipe.stages:
        on_step(stage.name)
        work = Workload(
            model, context_tokens=stage.context, frames=stage.frames, global_batch=stage.rows,
            precision=like.precision, kernel=like.kernel, lora_rank=stage.lora_rank,
            lora_beside=("embeddings", "norms") if stage.lora_rank else (), trainable=stage.trained,
        )  # fmt: skip
        try:
            choice = solve(cluster, work, fixed=fixed, profile=profile, room=room, keep=1).best[0]
        except NothingFits as fault:
            found.append(Planned(stage=stage.name, problem=str(fault)))
            continue
        hours = stage.steps * choice.cost.step_s / 3600
        gpu_hours = hours * cluster.gpus
        found.append(
            Planned(
                stage=stage.name, plan=choice.strategy.describe(), step_s=choice.cost.step_s, hours=hours,
                gpu_hours=gpu_hours, published_gpu_hours=stage.published_gpu_hours,
                dollars=None if dollars_per_gpu_hour is None else dollars_per_gpu_hour * gpu_hours,
            )
        )  # fmt: skip
    return found
