"""Which samples of a profile speak for a cluster of CPU processes: those measured under its load.

Processes of one host share cores, so a kernel's time depends on how many run at once. A profile holds each sample for
several loads (kernels: `ranks`; collectives: `shape` = (processes,)); the load nearest to the processes of a node is
taken, and scaled in proportion beyond the largest. GPUs are not shared: their samples are passed on as they are, unless
one is impossible (`impossible.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace

from cost_models.curves.samples import COLLECTIVES, Sample
from cost_models.hardware.cluster import Cluster
from cost_models.profile import Profile
from cost_models.timing.impossible import refuse_samples


def samples_for(profile: Profile | None, cluster: Cluster) -> tuple[Sample, ...]:
    """The samples that price this cluster; empty without a profile."""
    if profile is None:
        return ()
    node = cluster.runs[0].node
    if node.device.architecture != "cpu":
        refuse_samples(profile.samples, cluster)
        return profile.samples
    loads = sorted({load for sample in profile.samples if (load := _load(sample))})
    if not loads:
        return profile.samples
    nearest = min(loads, key=lambda load: (abs(math.log(load / node.gpus)), -load))
    slower = max(1.0, node.gpus / loads[-1])
    chosen = (sample for sample in profile.samples if _load(sample) in (0, nearest))
    return tuple(replace(sample, median_s=sample.median_s * slower) if _load(sample) else sample for sample in chosen)


def _load(sample: Sample) -> int:
    """Processes that ran when it was measured; 0 if it does not say."""
    if sample.op in COLLECTIVES:
        return sample.shape[0] if sample.shape and sample.path != "network" else 0
    return sample.ranks
