"""The batch script: right directives, and nothing from outside is run by the shell."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from cost_models import Cluster, InputError, Strategy
from cost_models.hardware.machine import discover
from executor.launch.dry_run import batch_arguments
from executor.launch.hosts import bind
from executor.launch.launch import Launch, Request
from executor.launch.settings import Settings
from planner.exports import slurm
from tests.executor.planned import make_plan

EVIL = "run=a b'\"; touch pwned; $(touch pwned) `touch pwned`"


def script(launch: Launch) -> str:
    return slurm.script(launch.plan, batch_arguments(launch))


def _launch(**given) -> Launch:
    plan = make_plan(Strategy(ring=4, ulysses=8, shard=32), cluster=Cluster.load("dgx-h100", nodes=4))
    request = Request(plan=Path("my plan.json"), hosts=("a", "b", "c", "d"), **given)
    binding = bind(plan, request.hosts)
    return Launch(
        request=request,
        plan=plan,
        settings=Settings(values={}),
        binding=binding,
        backend="nccl",
        here=discover(),
        host=None,
    )


def test_the_script_asks_for_the_plans_hosts_and_gpus():
    text = script(_launch())
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --nodes=4\n" in text and "#SBATCH --gpus-per-node=8\n" in text
    assert "#SBATCH --ntasks-per-node=1\n" in text


def test_values_reach_the_command_unread_by_the_shell(tmp_path):
    """Run under bash, with stand-ins for Slurm's programs and for the command that print what they are given."""
    for name, body in (
        ("scontrol", "printf 'n1\\nn2\\n'"),
        ("srun", 'shift; exec "$@"'),
        ("executor", 'python3 -c "import json,sys; print(json.dumps(sys.argv[1:]))" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script(_launch(sets=(EVIL,), config="c; d.yaml", run_dir=Path("r $HOME"))))
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-2]"}
    done = subprocess.run(
        ["bash", "job.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=20
    )
    got = json.loads(done.stdout)
    assert got[:3] == ["launch", "--hosts=n1,n2", "--node-rank=auto"]
    assert {"my plan.json", f"--set={EVIL}", "--config=c; d.yaml", "--run-dir=r $HOME"} <= set(got)
    assert not (tmp_path / "pwned").exists()


def test_line_breaks_are_refused():
    with pytest.raises(InputError, match="line break"):
        script(_launch(sets=("a=b\ntouch pwned",)))
