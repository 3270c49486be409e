"""A SkyPilot task: as many nodes, accelerators by SkyPilot's names, and the executor on each (task YAML of 0.14)."""

from __future__ import annotations

import json
import shlex

from cost_models.errors import InputError
from planner.exports.export import Export, equal_hosts
from planner.exports.torchrun import PORT
from planner.plan_file import Plan

ACCELERATORS = {
    "a10": "A10", "a10g": "A10G", "a100-sxm-40gb": "A100", "a100-pcie-40gb": "A100", "a100-sxm-80gb": "A100-80GB",
    "a100-pcie-80gb": "A100-80GB", "b200-sxm-180gb": "B200", "gh200": "GH200", "h100-sxm-80gb": "H100",
    "h100-pcie-80gb": "H100", "h200-sxm-141gb": "H200", "l4": "L4", "l40": "L40", "l40s": "L40S",
    "rtx3090": "RTX3090", "rtx4090": "RTX4090", "t4": "T4", "v100-sxm2-16gb": "V100", "v100-sxm2-32gb": "V100-32GB",
    "mi300x": "MI300X", "rtx6000-ada": "RTX6000-Ada", "rtxa6000": "RTXA6000",
}  # fmt: skip
"""SkyPilot's name of each device that its catalogue lists."""


def files(plan: Plan, plan_file: str) -> Export:
    """A task of SkyPilot. InputError: a card without a name there, unlike hosts."""
    nodes, ranks = equal_hosts(plan, "skypilot")
    device = plan.cluster.node(int(plan.placement.slot_of_rank[0])).device.name
    if device not in ACCELERATORS:
        raise InputError(f"--to skypilot has no name for device={device}; legal: {', '.join(ACCELERATORS)}")
    launch = shlex.join(["executor", "launch", plan_file, f"--port={PORT}"])
    run = [
        'hosts=$(echo "$SKYPILOT_NODE_IPS" | paste -sd, -)',
        f'{launch} --hosts="$hosts" --node-rank="$SKYPILOT_NODE_RANK"',
    ]
    lines = [
        "name: mmsp",
        f"num_nodes: {nodes}",
        "resources:",
        f"  accelerators: {ACCELERATORS[device]}:{ranks}",
        "workdir: .",
        "run: |",
        *(f"  {line}" for line in run),
    ]
    note = f"SkyPilot copies the folder that holds {json.dumps(plan_file)}; install the project in a `setup:` of yours"
    return Export({"sky.yaml": "\n".join([*lines, ""])}, (note,))
