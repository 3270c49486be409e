"""Host lists as Slurm writes them."""

from __future__ import annotations

import pytest

from cost_models.errors import InputError
from cost_models.hardware.readers.hostlist import expand


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("gpu[001-004]", "gpu001 gpu002 gpu003 gpu004"),
        ("gpu[001-002,7],login1", "gpu001 gpu002 gpu7 login1"),
        ("a.b-c, d", "a.b-c d"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("r[1-2]n[0-1]x", "r1n0x r1n1x r2n0x r2n1x"),
        ("", ""),
    ],
)
def test_lists_are_expanded_in_order(text: str, hosts: str) -> None:
    assert expand(text) == tuple(hosts.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu[001-", "is no host name or list"),
        ("gpu[4-1]", "'4-1' is neither a number nor a range"),
        ("gpu[]", "is no host name or list"),
        ("a b", "is no host name or list"),
        ("a;ls", "is no host name or list"),
        ("n[1-999999999]", "more than 131,072 hosts"),
        ("n[1-999][1-999]", "more than 131,072 hosts"),
        ("n[٣]", "is no host name or list"),
    ],
)
def test_what_is_no_list_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expand(text)
