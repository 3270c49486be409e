"""Flows in SimGrid, set up as a plain max-min model: run by `against_simgrid.py` under Debian's Python.

Reads one JSON object a line from standard input: `capacity` (bytes/s by link), `routes` (links of each route), and the
flows as `route`, `bytes` and `start_s`. Answers each with one line: `end_s` of every flow and `wall_s` of the run.
Links have no latency; a flow that starts later is sent later. Needs only the standard library and python3-simgrid.
"""

import json
import os
import sys
import time

SETTINGS = (
    "network/model:CM02",
    "network/crosstraffic:0",
    "network/optim:Full",
    "network/TCP-gamma:0",
    "maxmin/precision:1e-9",
    "contexts/factory:thread",
)


def run(case):
    import simgrid

    engine = simgrid.Engine(["simgrid", "--log=root.thresh:critical", *(f"--cfg={one}" for one in SETTINGS)])
    zone = simgrid.NetZone.create_full_zone("zone")
    links = [
        zone.create_link(f"link {i}", float(rate)).set_latency(0).seal() for i, rate in enumerate(case["capacity"])
    ]
    pairs = []
    for i, route in enumerate(case["routes"]):
        ends = [zone.create_host(f"{side} {i}", 1.0).seal() for side in ("from", "to")]
        zone.add_route(
            ends[0].netpoint, ends[1].netpoint, None, None, [simgrid.LinkInRoute(links[l]) for l in route], False
        )
        pairs.append(ends)
    zone.seal()
    end_s = [0.0] * len(case["route"])

    def send(flows):
        simgrid.this_actor.sleep_until(case["start_s"][flows[0]])
        comms = [simgrid.Comm.sendto_async(*pairs[case["route"][f]], case["bytes"][f]) for f in flows]
        simgrid.Comm.wait_all(comms)
        for f, comm in zip(flows, comms, strict=True):
            end_s[f] = comm.finish_time

    together = {}
    for f, start in enumerate(case["start_s"]):
        together.setdefault(start, []).append(f)
    for start, flows in sorted(together.items()):
        simgrid.Actor.create(f"start {start}", pairs[0][0], send, flows)
    began = time.perf_counter()
    engine.run()
    return {"end_s": end_s, "wall_s": time.perf_counter() - began}


def main():
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    for line in sys.stdin:
        receiver, sender = os.pipe()
        child = os.fork()  # an engine lives as long as its process
        if not child:
            os.write(sender, b"")
            with os.fdopen(sender, "w") as out:
                json.dump(run(json.loads(line)), out)
            os._exit(0)
        os.close(sender)
        with os.fdopen(receiver) as found:
            answers.write(found.read() + "\n")
            answers.flush()
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
