"""This machine's cards, by the drivers' own names, and which preset each is."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.hardware.device import Device
from cost_models.hardware.device_names import device_of, same_card
from cost_models.hardware.machine import Gpu, discover, parse_amd, parse_nvidia, visible

# name and MiB as `nvidia-smi` and `rocm-smi` print them
PRINTED = [
    ("NVIDIA H200", 143771, "h200-sxm-141gb"),
    ("NVIDIA H200 NVL", 143771, "h200-nvl-141gb"),
    ("NVIDIA H100 80GB HBM3", 81559, "h100-sxm-80gb"),
    ("NVIDIA H100 PCIe", 81559, "h100-pcie-80gb"),
    ("NVIDIA H100 NVL", 95830, "h100-nvl-94gb"),
    ("NVIDIA GH200 480GB", 97871, "gh200"),
    ("NVIDIA B200", 183359, "b200-sxm-180gb"),
    ("NVIDIA A100-SXM4-80GB", 81920, "a100-sxm-80gb"),
    ("NVIDIA A100-SXM4-40GB", 40960, "a100-sxm-40gb"),
    ("NVIDIA A100 80GB PCIe", 81920, "a100-pcie-80gb"),
    ("NVIDIA A100-PCIE-40GB", 40960, "a100-pcie-40gb"),
    ("NVIDIA L40S", 46068, "l40s"),
    ("NVIDIA L40", 46068, "l40"),
    ("NVIDIA L4", 23034, "l4"),
    ("NVIDIA A10G", 23028, "a10g"),
    ("NVIDIA A10", 23028, "a10"),
    ("Tesla T4", 15360, "t4"),
    ("Tesla V100-SXM2-32GB", 32768, "v100-sxm2-32gb"),
    ("Tesla V100-PCIE-16GB", 16384, "v100-pcie-16gb"),
    ("NVIDIA RTX A6000", 49140, "rtxa6000"),
    ("NVIDIA RTX 6000 Ada Generation", 49140, "rtx6000-ada"),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, "rtx6000-pro"),
    ("NVIDIA GeForce RTX 4090", 24564, "rtx4090"),
    ("NVIDIA GeForce RTX 3090", 24576, "rtx3090"),
    ("NVIDIA H20", 97871, "h20"),
    ("NVIDIA H20-3e", 143771, "h20-141gb"),
    ("NVIDIA H800", 81559, "h800"),
    ("AMD Instinct MI300X OAM", 196592, "mi300x"),
    ("AMD Instinct MI250X", 65520, "mi250x-gcd"),
]


@pytest.mark.parametrize(("name", "mib", "preset"), PRINTED)
def test_the_drivers_names(name: str, mib: int, preset: str) -> None:
    size = mib * 2**20 / 1e9
    assert device_of(name, size).name == preset
    assert [other for other in Device.names() if same_card(Device.load(other), name, size)] == [
        other for other in Device.names() if other.removesuffix("-capped") == preset
    ]


@pytest.mark.parametrize(
    ("name", "mib", "message"),
    [
        ("NVIDIA H300", 81559, "matches no preset; nearest: b300, h100-"),
        ("AMD Instinct MI308X", 196592, "matches no preset; nearest: mi30"),
        ("Quadro RTX 6000", 24576, "with 26 GB matches no preset; nearest: rtx6000"),
        ("NVIDIA GeForce RTX 3090 Ti", 24564, "matches no preset; nearest: rtx3090"),
    ],
)
def test_an_unknown_card_is_refused_with_the_nearest(name: str, mib: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        device_of(name, mib * 2**20 / 1e9)


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A `nvidia-smi` on PATH that prints these lines."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("name", "mib", "preset"), [row for row in PRINTED if not row[0].startswith("AMD")])
def test_this_machine_as_a_cluster(
    name: str, mib: int, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, monkeypatch, *(f"{name}, {mib}, {mib - 500}, GPU-{i}" for i in range(4)))
    node = Cluster.load("local").node(0)
    assert (node.device.name, node.device.memory_bytes, node.gpus) == (preset, mib * 2**20, 4)
    assert Cluster.load("local", gpus=2).gpus == 2


def test_visible_cards_are_those_of_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["NVIDIA L4, 23034, 23000, GPU-aa", "NVIDIA L4, 23034, 23000, GPU-ab", "Tesla T4, 15360, 15000, GPU-c"]
    driver(tmp_path, monkeypatch, *lines)
    with pytest.raises(InputError, match=r"\(NVIDIA L4, Tesla T4\); choose some with CUDA_VISIBLE_DEVICES"):
        Cluster.load("local")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert Cluster.load("local").node(0).device.name == "t4"
    assert [gpu.name for gpu in discover().gpus] == ["Tesla T4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert discover().gpus == () and Cluster.load("local").node(0).device.name == "cpu"


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, "abc"), ("2,0", "ca"), ("0,1,7,2", "ab"), ("1,x,0", "b"), ("1,1", "b"), ("GPU-c,GPU-a", "ca"),
        ("GPU-", ""), ("-1", ""), ("", ""), ("٣", ""),
    ],
)  # fmt: skip
def test_the_list_of_visible_devices_is_read_as_cuda_reads_it(chosen: str | None, left: str) -> None:
    cards = [Gpu(name=name, memory_bytes=1, free_bytes=1, uuid=f"GPU-{name}") for name in "abc"]
    assert "".join(gpu.name for gpu in visible(cards, chosen)) == left


def test_lists_of_cards_are_read_whatever_else_they_hold() -> None:
    assert parse_nvidia("NVIDIA A100-SXM4-80GB, 81920, 81000, GPU-1\nrubbish\n, , ,\n")[0].free_bytes == 81000 * 2**20
    (card,) = parse_amd(
        '{"card0": {"Card series": "AMD Instinct MI210", "VRAM Total Memory (B)": "68702699520",'
        ' "VRAM Total Used Memory (B)": "10485760"}, "system": {"Driver version": "6.3"}, "x": 3}'
    )
    assert card.name == "AMD Instinct MI210" and card.memory_bytes - card.free_bytes == 10485760
    assert parse_amd("no JSON") == parse_amd("[]") == ()
