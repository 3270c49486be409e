"""Flows in SimGrid, set up as a plain max-min model: `against_simgrid.py` runs this under Debian's Python.

Reads one JSON object a line from standard input: `capacity` (bytes/s by link), `routes` (each [from, to, links]), and
for each flow its `route`, `bytes` and `start_s`. Answers each with a line: `end_s` of every flow, `cpu_s` of the run.
Links have no latency; a flow with a later start is sent later. Needs the standard library and python3-simgrid alone.
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
    links = [zone.create_link(f"link {i}", float(rate)).set_latency(0) for i, rate in enumerate(case["capacity"])]
    links = [link.seal() for link in links]
    hosts = {}
    for source, to, crossed in case["routes"]:
        for name in (source, to):
            if name not in hosts:
                hosts[name] = zone.create_host(f"host {name}", 1.0).seal()
        route = [simgrid.LinkInRoute(links[link]) for link in crossed]
        zone.add_route(hosts[source].netpoint, hosts[to].netpoint, None, None, route, False)
    zone.seal()
    end_s = [0.0] * len(case["route"])

    def send(flows):
        simgrid.this_actor.sleep_until(case["start_s"][flows[0]])
        comms = []
        for flow in flows:
            source, to, _ = case["routes"][case["route"][flow]]
            comms.append(simgrid.Comm.sendto_async(hosts[source], hosts[to], case["bytes"][flow]))
        simgrid.Comm.wait_all(comms)
        for flow, comm in zip(flows, comms, strict=True):
            end_s[flow] = comm.finish_time

    together = {}
    for flow, start in enumerate(case["start_s"]):
        together.setdefault(start, []).append(flow)
    for start, flows in sorted(together.items()):
        simgrid.Actor.create(f"start {start}", next(iter(hosts.values())), send, flows)
    began = time.process_time()
    engine.run()
    return {"end_s": end_s, "cpu_s": time.process_time() - began}


def main():
    for line in sys.stdin:
        receiver, sender = os.pipe()
        child = os.fork()  # an engine lives as long as its process
        if not child:
            with os.fdopen(sender, "w") as answer:
                json.dump(run(json.loads(line)), answer)
            os._exit(0)
        os.close(sender)
        with os.fdopen(receiver) as answer:
            found = answer.read()
        os.waitpid(child, 0)
        print(found or "null", flush=True)


if __name__ == "__main__":
    main()
