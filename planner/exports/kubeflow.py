"""A Kubeflow TrainJob (trainer.kubeflow.org/v1alpha1, Trainer 2) on its torch runtime: one pod for each host.

Pods have no names before they run, so ranks meet by torchrun's numbers and the worker posts what each host has.
"""

from __future__ import annotations

import json

from planner.exports.export import Export, as_json, equal_hosts
from planner.exports.torchrun import WORKER
from planner.plan_file import Plan


def files(plan: Plan, plan_file: str) -> Export:
    """A TrainJob of Kubeflow's trainer. InputError: hosts with unlike numbers of ranks."""
    nodes, ranks = equal_hosts(plan, "kubeflow")
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "mmsp"},
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime",
                           "name": "torch-distributed"},
            "trainer": {
                "numNodes": nodes,
                "numProcPerNode": ranks,
                "resourcesPerNode": {"limits": {"nvidia.com/gpu": ranks}},
                "command": ["torchrun", "--module", WORKER, plan_file],
            },
        },
    }  # fmt: skip
    note = f"the image must hold the project and {json.dumps(plan_file)}: set spec.trainer.image"
    return Export({"trainjob.json": as_json(job)}, (note,))
