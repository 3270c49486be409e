"""`ibnetdiscover` -> FabricTree: the cables of an InfiniBand subnet, with their rates.

    Switch	65 "S-2c5e…"		# "MF0;LEAF-01:MQM9701/U1" …          a switch, then a line for each of its ports
    [1]	"H-e09d…"[1](…) 		# "dgx-040 mlx5_5" lid 647 4xNDR      to a card of host dgx-040: four lanes of NDR
    [35]	"S-2c5e…"[32]		# "MF0;SPINE-02:MQM9701/U1" lid 236 4xNDR   to another switch

A card's description starts with its host's name; cards that carry the maker's description instead belong to no host
and are left out, as are the aggregation nodes inside switches.
"""

from __future__ import annotations

import re
from types import MappingProxyType

from cost_models.errors import InputError
from cost_models.hardware.readers.fabric_tree import Builder, FabricTree

LANE_GBIT_PER_S = MappingProxyType(
    {
        "SDR": 2.0,
        "DDR": 4.0,
        "QDR": 8.0,
        "FDR10": 10.0,
        "FDR": 14.0,
        "EDR": 25.0,
        "HDR": 50.0,
        "NDR": 100.0,
        "XDR": 200.0,
    }
)
"""Data rate of one lane (InfiniBand Trade Association's roadmap)."""
MOST_LINE = 1000
_SWITCH = re.compile(r'^Switch\s+[0-9]+\s+"(S-[0-9a-f]+)"\s+#\s+"([^"]*)"')
_PORT = re.compile(
    r'^\[[0-9]+\](?:\[[^\]]*\])?\s+"([SH]-[0-9a-f]+)"\[[0-9]+\]\S*\s+#\s+"([^"]*)".*?([0-9]+)x([A-Z0-9]+)\s*$'
)
_HOST = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s+(?:mlx[0-9]+_[0-9]+|HCA-[0-9]+|\S*(?:ib|hca|mlx)\S*)\s*$", re.I)


def is_discovery(text: str) -> bool:
    return bool(re.search(r'^Switch\s+[0-9]+\s+"S-[0-9a-f]+"', text, re.M))


def read(text: str, where: str) -> FabricTree:
    builder, switch, nameless = Builder(where), None, 0
    for line in text.splitlines():
        if len(line) > MOST_LINE:
            raise InputError(f"{where}: a line of {len(line):,} characters; at most {MOST_LINE} are read")
        if line.startswith(("Switch", "Ca")):
            match = _SWITCH.match(line)
            switch = match[1] if match else None
            if switch is not None:
                builder.switch(switch)
        elif switch is not None and (port := _PORT.match(line)):
            other, described, lanes, speed = port.groups()
            if speed not in LANE_GBIT_PER_S:
                raise InputError(f"{where}: link rate {lanes}x{speed} is unknown; legal: {', '.join(LANE_GBIT_PER_S)}")
            rate = int(lanes) * LANE_GBIT_PER_S[speed] * 1e9 / 8
            if other.startswith("S-"):
                builder.switch(other)
                if switch < other:  # each cable is printed at both ends
                    builder.cable(switch, other, rate)
            elif host := _HOST.match(described):
                builder.hosts([host[1]])
                builder.cable(host[1], switch, rate)
            elif "Aggregation" not in described:
                nameless += 1
    if nameless:
        builder.notes.append(f"{nameless} cards carry no host's name and are left out: {where}")
    return builder.finish(every_link=True)
