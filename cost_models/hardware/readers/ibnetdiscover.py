"""`ibnetdiscover` -> FabricTree: the cables of an InfiniBand subnet, with their rates.

    Switch	65 "S-2c5e…"		# "MF0;LEAF-01:MQM9701/U1" …          a switch, then a line for each of its ports
    [1]	"H-e09d…"[1](…) 		# "dgx-040 mlx5_5" lid 647 4xNDR      to a card of host dgx-040: four lanes of NDR
    [35]	"S-2c5e…"[32]		# "MF0;SPINE-02:MQM9701/U1" lid 236 4xNDR   to another switch

A card's description starts with its host's name; cards that carry the maker's description instead belong to no host
and are left out, as are the aggregation nodes inside switches.
"""

from __future__ import annotations

import re
from collections import Counter
from types import MappingProxyType

from cost_models.errors import InputError
from cost_models.hardware.readers.fabric_tree import Builder, FabricTree
from cost_models.hardware.readers.hostlist import MOST_HOSTS

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
_LINE = re.compile(
    r'^(?:Switch[ \t]+[0-9]+[ \t]+"(S-[0-9a-f]+)"[ \t]+#[ \t]+"|(Switch|Ca)\b'
    r'|\[[0-9]+\](?:\[[^\]\n]*\])?[ \t]+"([SH]-[0-9a-f]+)"\[[0-9]+\][^\s]*[ \t]+#[ \t]+"([^"\n]*)"'
    r"[^\n]*?[ \t]([0-9]{1,3})x([A-Z0-9]{1,8})[ \t]*$)",
    re.M,
)
"""The beginning of a switch, of anything else with ports, or one of its ports."""
_CARD = re.compile(r"mlx[0-9]+_[0-9]+|HCA-[0-9]+|\S*(?:ib|hca|mlx)\S*", re.I)
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def is_discovery(text: str) -> bool:
    """Whether the text is what `ibnetdiscover` prints."""
    return bool(re.search(r'^Switch\s+[0-9]+\s+"S-[0-9a-f]+"', text, re.M))


def read(text: str, where: str) -> FabricTree:
    """Switches, hosts and every cable with its rate. InputError: an unknown rate, no host, too long a line."""
    if (longest := max(map(len, text.split("\n")))) > MOST_LINE:
        raise InputError(f"{where}: a line of {longest:,} characters; at most {MOST_LINE} are read")
    builder, switch, nameless = Builder(where), None, 0
    hosts: dict[str, None] = {}
    cables: Counter[tuple[str, str, float]] = Counter()
    is_card: dict[str, bool] = {}
    for match in _LINE.finditer(text):
        started, other_kind, other, described, lanes, speed = match.groups()
        if other is None:
            switch = started
            if switch is not None:
                builder.switch(switch)
            continue
        if switch is None or other_kind is not None:
            continue
        if speed not in LANE_GBIT_PER_S:
            raise InputError(f"{where}: link rate {lanes}x{speed} is unknown; legal: {', '.join(LANE_GBIT_PER_S)}")
        rate = int(lanes) * LANE_GBIT_PER_S[speed] * 1e9 / 8
        if other[0] == "S":
            builder.switch(other)
            if switch < other:  # each cable is printed at both ends
                cables[switch, other, rate] += 1
            continue
        name, _, card = described.strip().partition(" ")
        if card not in is_card:
            is_card[card] = bool(_CARD.fullmatch(card.strip()))
        if is_card[card] and _HOST.fullmatch(name):
            hosts[name] = None
            if len(hosts) > MOST_HOSTS:
                raise InputError(f"{where} names more than {MOST_HOSTS:,} hosts")
            cables[name, switch, rate] += 1
        elif "Aggregation" not in described:
            nameless += 1
    builder.hosts(list(hosts))
    for (one, other, rate), links in cables.items():
        builder.cable(one, other, rate, links)
    if nameless:
        builder.notes.append(f"{nameless} cards carry no host's name and are left out: {where}")
    return builder.finish(every_link=True)
