"""Measurements that no card can have made are refused by name, in profiles and in published rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from cost_models.curves.samples import Sample
from cost_models.errors import InputError
from cost_models.hardware.cluster import Cluster
from cost_models.profile import Profile
from cost_models.timing.profile_samples import samples_for
from validation.fit import rows

ATTENTION = (1, 16384, 16384, 32, 8, 128, 1)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample(op="gemm", median_s=1e-5, shape=(8192, 8192, 8192)), r"gemm \[8192, 8192, 8192\]: 109,951 TFLOP/s"),
        (Sample(op="attention_forward", median_s=1e-5, shape=ATTENTION), "219,916 TFLOP/s .* above the 989 of h100"),
        (Sample(op="attention_backward", median_s=4e-3, shape=ATTENTION), "1,374 TFLOP/s in 0.004 s"),
        (Sample(op="gemm", median_s=5e-4, shape=(8192, 8192, 8192), dtype="fp8"), "above the 1,979 of h100"),
        (Sample(op="memory_bound", median_s=1e-4, bytes=1e9), "10,000 GB/s in 0.0001 s, above the 3,350"),
        (Sample(op="memory_bound", median_s=1e-9, bytes=9e8), "above the 33,500 of a cache of h100"),
        (Sample(op="all_gather", median_s=1e-3, bytes=1e9, ranks=8, path="nvlink4"), "1,000 GB/s .* the 450 of the"),
        (Sample(op="send_recv", median_s=1e-3, bytes=1e9, ranks=2, path="network"), "above the 400 of the link"),
    ],
)
def test_a_profile_faster_than_the_hardware_is_refused_by_name(sample: Sample, message: str) -> None:
    profile = Profile(version=1, device="h100-sxm-80gb", machine="node", samples=(sample,))
    with pytest.raises(InputError, match=message):
        samples_for(profile, Cluster.load("dgx-h100", nodes=2))


def test_what_a_board_can_do_is_taken() -> None:
    possible = (
        Sample(op="gemm", median_s=1.2e-3, shape=(8192, 8192, 8192)),
        Sample(op="gemm", median_s=8e-4, shape=(8192, 8192, 8192), dtype="fp8"),
        Sample(op="memory_bound", median_s=1e-6, bytes=1e7),  # out of the L2 cache
        Sample(op="all_reduce", median_s=1.9e-3, bytes=1.75 * 5e8, ranks=8, path="nvlink4"),  # its switch adds
    )
    profile = Profile(version=1, device="h100-sxm-80gb", machine="node", samples=possible)
    assert samples_for(profile, Cluster.load("dgx-h100", nodes=1)) == possible
    cpu = Profile(version=1, device="cpu", machine="", samples=possible[:1])
    assert samples_for(cpu, Cluster.load("local", gpus=1))


def test_a_published_row_above_its_card_s_peak_stops_the_fit(tmp_path: Path) -> None:
    header = "source,device,framework,version,gemm_dtype,m,n,k,latency_ms,tflops\n"
    row = "x,NVIDIA L40S,VLLM,0.14.0,bfloat16,4096,4096,4096,0.1,1374\n"
    (tmp_path / "gemm.csv").write_text(header + row)
    with pytest.raises(InputError, match=r"gemm\.csv: 4096 x 4096 x 4096: 1,374 TFLOP/s .* above the 362 of l40s"):
        rows.gemm(tmp_path, "gemm.csv")


def test_a_published_collective_above_its_link_s_rate_is_refused(tmp_path: Path) -> None:
    # as Vidur's bytes, doubled in a transcription: 670 GB/s over a link of 300
    header = "source,device,nccl_or_fw_version,op,nccl_dtype,num_gpus,scope,bytes,latency_ms,busbw_GBps\n"
    row = "x,NVIDIA A100-SXM4-80GB,2.27.3,all_gather,half,2,intra-node,134217728,0.1,671\n"
    (tmp_path / "kernels_comm_aiconfigurator.csv").write_text(header + row)
    with pytest.raises(InputError, match=r"all_gather over 2, .* 671 GB/s .* above the 300 of the link of NVIDIA A100"):
        rows.collectives(tmp_path, "NVIDIA A100-SXM4-80GB", "all_gather")
