"""Cluster -> the text of a cluster file (YAML), which `cluster_file.py` reads back as the same cluster.

Rates, sizes and times are written with a unit where that loses no digit, else as plain SI numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields

import yaml

from cost_models import strict
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster, NodeRun
from cost_models.hardware.device import Device
from cost_models.hardware.readers.hostlist import compress
from cost_models.units import parse_bytes, parse_rate, parse_seconds


def cluster_yaml(cluster: Cluster) -> str:
    """
    >>> cluster_yaml(Cluster.load("dgx-h100", nodes=2)).splitlines()[2:4]
    ['- count: 2', '  device: h100-sxm-80gb']
    """
    data: dict[str, object] = {"name": cluster.name, "nodes": [_run(run) for run in cluster.runs]}
    data["fabric"] = _written(strict.plain(cluster.fabric))
    if cluster.nodes_per_domain > 1:
        data["nodes_per_domain"] = cluster.nodes_per_domain
    if cluster.domains:
        data["domains"] = list(cluster.domains)
    if cluster.hosts:
        data["hosts"] = compress(cluster.hosts)
    if cluster.notes:
        data["notes"] = list(cluster.notes)
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


def _run(run: NodeRun) -> dict[str, object]:
    node = run.node
    entry = {"count": run.count, "device": node.device.name, "gpus": node.gpus}
    entry |= {name: _part(getattr(node, name)) for name in ("scale_up", "nics")}
    entry |= {name: getattr(node, name) for name in ("host_memory_bytes", "host_link_bytes_per_s", "cpus")}
    for name in ("missing_nics", "missing_bridges", "nic_shares"):
        if value := getattr(node, name):
            entry[name] = list(value)
    return _written({**entry, **_differences(node.device)})


def _part(value: object) -> dict[str, object]:
    """Fields of a part of a node that are not as they would be if left out."""
    defaults = {field.name: field.default for field in fields(value)}  # type: ignore[arg-type]
    plain: dict[str, object] = strict.plain(value)
    return {name: item for name, item in plain.items() if defaults[name] is MISSING or item != defaults[name]}


def _differences(device: Device) -> dict[str, object]:
    """What the device has other than its preset: clock, share of the peaks, memory and its rate."""
    preset = Device.load(device.name)
    found: dict[str, object] = {}
    if device.clock_hz != preset.clock_hz and device.clock_hz is not None:
        found["clock_mhz"] = device.clock_hz / 1e6
        preset = preset.at_clock(device.clock_hz)
    if dict(device.peak_flops) != dict(preset.peak_flops):
        found["peak_share"] = device.peak_16bit / preset.peak_16bit
    for name in ("memory_bytes", "memory_bytes_per_s"):
        if getattr(device, name) != getattr(preset, name):
            found[name] = getattr(device, name)
    return found


def _written(values: Mapping[str, object]) -> dict[str, object]:
    return {
        name: _written(value) if isinstance(value, Mapping) else _with_unit(name, value)
        for name, value in values.items()
    }


def _with_unit(name: str, value: object) -> object:
    """The value with a unit, if reading that gives the same number."""
    if not isinstance(value, int | float) or not value:
        return value
    if name.endswith("bytes_per_s"):
        text, parse = f"{value / 1e9:.9g} GB/s", parse_rate
    elif name.endswith("_bytes"):
        text, parse = f"{value / 2**30:.9g} GiB", parse_bytes
    elif name.endswith("_s"):
        text, parse = f"{value * 1e6:.9g} us", parse_seconds
    else:
        return value
    try:
        return text if parse(text, name) == value else value
    except InputError:
        return value
