"""Nodes made of network namespaces on this machine, joined by a bridge, each behind a link of its own rate.

    node i: lo, eth0 10.77.0.(i+1)  ──veth── port i of the bridge in a namespace of its own
                └ htb at the node's rate (out)      └ htb at the node's rate (in)

Needs root and iproute2 on Linux. Names carry the process id, so runs do not meet; everything is gone when the context
ends, also after an error or Ctrl-C. Addresses exist inside the namespaces only. Left out: latency and loss (netem is
not in every kernel), and cores: all nodes share those of this machine.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cost_models.errors import InputError

MOST_NODES = 64
BURST = "32kb"
"""What a link may send at once after it was idle."""
SEGMENT_S = 1e-3
"""What a segment takes of the link's time. The kernel hands TCP's data on in segments of up to 64 KiB, and a shaper
lets a whole one pass at once: 33 kB over an idle link of 50 Mbit/s took 0.16 ms, and takes 4.5."""
CONTROL = "reno"
"""Of TCP's congestion in the nodes, whatever the host's is. BBR keeps in flight what the least round trip holds: too
little where acknowledgements wait behind what goes the other way. A tree over 50 Mbit/s took 590 ms, not 450."""


class Namespaces:
    """A context with one namespace for each rate; `None` leaves a node's link as fast as the machine makes it.

    InputError where this user or machine cannot make namespaces.
    """

    def __init__(self, rates_mbit: Sequence[float | None]) -> None:
        self.rates_mbit = tuple(rates_mbit)
        stem = f"mmsp{os.getpid()}"
        self.names = tuple(f"{stem}n{number}" for number in range(len(self.rates_mbit)))
        self.addresses = tuple(f"10.77.0.{number + 1}" for number in range(len(self.rates_mbit)))
        self._bridge = f"{stem}br"

    def __enter__(self) -> Namespaces:
        check_possible()
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def cut(self, node: int) -> None:
        """Take a node's link down."""
        _run("ip", "-n", self.names[node], "link", "set", "eth0", "down")

    def join(self, node: int) -> None:
        """Take a node's link up again."""
        _run("ip", "-n", self.names[node], "link", "set", "eth0", "up")

    def _make(self) -> None:
        _run("ip", "netns", "add", self._bridge)
        _run("ip", "-n", self._bridge, "link", "add", "name", "bridge0", "type", "bridge")
        _run("ip", "-n", self._bridge, "link", "set", "bridge0", "up")
        for number, (name, rate) in enumerate(zip(self.names, self.rates_mbit, strict=True)):
            port = f"port{number}"
            _run("ip", "netns", "add", name)
            ends = ("name", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", self._bridge)
            _run("ip", "link", "add", *ends)
            _run("ip", "-n", self._bridge, "link", "set", port, "master", "bridge0")
            _run("ip", "-n", self._bridge, "link", "set", port, "up")
            _run("ip", "-n", name, "addr", "add", f"{self.addresses[number]}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", link, "up")
            if rate is not None:
                _run("ip", "-n", name, "link", "set", "eth0", "gso_max_segs", str(packets(rate)))
                _run("ip", "netns", "exec", name, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={CONTROL}")
                _shape(name, "eth0", rate)
                _shape(self._bridge, port, rate)

    def _remove(self) -> None:
        for name in (*self.names, self._bridge):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def check_possible() -> None:
    """InputError, in one line, where namespaces cannot be made."""
    if sys.platform != "linux" or any(shutil.which(program) is None for program in ("ip", "tc", "sysctl")):
        raise InputError("nodes of network namespaces need Linux with iproute2 (ip and tc) and sysctl")
    if os.geteuid() != 0:
        raise InputError("nodes of network namespaces need root: run this command as root")


def enter(namespace: str) -> None:
    """Move this process, which has one thread, into a namespace; gloo then talks over its eth0."""
    with Path("/run/netns", namespace).open() as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"network namespace {namespace} cannot be entered")
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"


def wire_bytes(inside: bool = False) -> int:
    """Bytes that the links out of this process's namespace have sent since it was made, headers included; `inside`:
    with what its processes send each other."""
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    counted = (line.split(":") for line in lines)
    return sum(int(counts.split()[8]) for name, counts in counted if inside or name.strip() != "lo")


def packets(rate_mbit: float) -> int:
    """Of a segment.

    >>> packets(10), packets(50), packets(200), packets(1000)
    (1, 4, 17, 44)
    """
    return max(1, min(44, int(rate_mbit * 1e6 / 8 * SEGMENT_S / 1460)))


def _shape(namespace: str, device: str, rate_mbit: float) -> None:
    _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "1")
    rate = ("htb", "rate", f"{round(rate_mbit * 1e6)}bit", "burst", BURST)
    _run("tc", "-n", namespace, "class", "add", "dev", device, "parent", "1:", "classid", "1:1", *rate)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"no network namespaces here: {' '.join(command)}: {done.stderr.strip()}")
