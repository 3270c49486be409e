"""Jobs that the launch tests start by dotted name. Each writes what it found to files named by rank in `out`."""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from longvila.job import JobError


def main(job):
    rank, out, what = dist.get_rank(), Path(job.config["out"]), job.config.get("what", "report")
    groups = job.sharding.groups
    found = {
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "world": dist.get_world_size(),
        "device": str(job.device),
        "local_rank": os.environ.get("LOCAL_RANK"),
        "axes": {axis: getattr(groups, axis).ranks for axis in ("ulysses", "ring", "context", "data", "shard")},
    }
    partial = out / f"partial{rank}"
    partial.write_text(json.dumps(found))
    partial.rename(out / f"rank{rank}.json")
    print(f"to stdout from {rank}", flush=True)
    print(f"to stderr from {rank}", file=sys.stderr, flush=True)
    if what == "full":
        dist.barrier()  # the other rank has written what it writes
        try:
            with (out / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        except OSError as fault:
            raise JobError(f"checkpoint cannot be written: {fault.strerror}") from None
    if what == "mistake":
        raise JobError("data: no such file; name one that is there")
    while what == "until_told" and not (out / "told").exists():
        time.sleep(0.05)
    while what == "transfer":
        ring, sent = groups.context.exchange(), torch.zeros(1)
        ring.start_transfer([(1 - rank, sent)], [(1 - rank, torch.zeros(1))]).wait()
        time.sleep(0.01)
    if what == "fault" and rank == 1:
        raise ValueError("this rank is broken")
    if what in ("fault", "collective"):
        dist.all_reduce(torch.zeros(1))
    if what in ("wait", "collective"):
        time.sleep(120)
