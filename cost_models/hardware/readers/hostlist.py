"""Host names as Slurm writes them: `gpu[001-004,7],login1` is gpu001, gpu002, gpu003, gpu004, gpu7 and login1.

Zeros are kept as in the first number of a range; brackets may stand anywhere and several times in a name. What a name
may hold is letters, digits, dot, hyphen and underscore.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby, product

from cost_models.errors import InputError

MOST_HOSTS = 2**17
MOST_NAME = 253
"""Characters of a host's name (RFC 1035)."""
_PIECE = re.compile(r"[A-Za-z0-9._-]+|\[([0-9,\s-]+)\]")
_NUMBERED = re.compile(r"(.*?)([0-9]{0,9})")
_SPAN = re.compile(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*")


def expand(text: str, where: str = "--hosts") -> tuple[str, ...]:
    """Every host of the list, in order.

    >>> expand("gpu[001-003,7]"), expand("a,rack[1-2]n[0-1]")
    (('gpu001', 'gpu002', 'gpu003', 'gpu7'), ('a', 'rack1n0', 'rack1n1', 'rack2n0', 'rack2n1'))
    """
    hosts: list[str] = []
    start, inside = 0, False
    for mark in re.finditer(r"[,\[\]]|\Z", text):
        if mark[0] in ("[", "]"):
            inside = mark[0] == "["
        elif mark[0] == "" or not inside:
            item = text[start : mark.start()].strip()
            if item:
                hosts.extend(_expand_one(item, where, MOST_HOSTS - len(hosts)))
            start = mark.end()
    return tuple(hosts)


def compress(hosts: Sequence[str]) -> str:
    """The list as Slurm writes it: `expand` gives the same hosts in the same order.

    >>> compress(["gpu001", "gpu002", "gpu003", "gpu007", "login"])
    'gpu[001-003,007],login'
    """
    pieces = []
    named = [(match[1], match[2]) for host in hosts if (match := _NUMBERED.fullmatch(host))]
    for (prefix, width), group in groupby(named, key=lambda name: (name[0], len(name[1]))):
        numbers = [digits for _, digits in group]
        if not width:
            pieces += [prefix] * len(numbers)
            continue
        spans: list[list[str]] = []
        for digits in numbers:
            if spans and int(digits) == int(spans[-1][-1]) + 1:
                spans[-1] = [spans[-1][0], digits]
            else:
                spans.append([digits])
        listed = ",".join("-".join(span) for span in spans)
        pieces.append(f"{prefix}{listed}" if listed.isdigit() else f"{prefix}[{listed}]")
    return ",".join(pieces)


def _expand_one(item: str, where: str, room: int) -> list[str]:
    choices: list[list[str]] = []
    at, count = 0, 1
    while at < len(item):
        piece = _PIECE.match(item, at)
        if piece is None:
            raise InputError(f"{where} {item[:60]!r} is no host name or list such as gpu[001-004,7]")
        spans = [piece[0]] if piece[1] is None else _numbers(piece[1], item, where, room)
        choices.append(spans)
        count *= len(spans)
        if count > room:
            raise InputError(f"{where} {item[:60]!r} names more than {MOST_HOSTS:,} hosts")
        at = piece.end()
    if sum(len(max(names, key=len)) for names in choices) > MOST_NAME:
        raise InputError(f"{where} {item[:60]!r} names a host of more than {MOST_NAME} characters")
    return ["".join(parts) for parts in product(*choices)]


def _numbers(text: str, item: str, where: str, room: int) -> list[str]:
    numbers: list[str] = []
    for span in text.split(","):
        match = _SPAN.fullmatch(span)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"{where} {item[:60]!r}: {span[:20]!r} is neither a number nor a range such as 001-004")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= room:
            raise InputError(f"{where} {item[:60]!r} names more than {MOST_HOSTS:,} hosts")
        numbers.extend(f"{number:0{len(match[1])}d}" for number in range(first, last + 1))
    return numbers
