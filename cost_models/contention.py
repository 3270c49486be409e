"""What a collective takes from the computation beside it: multiprocessors and memory bandwidth.

    seconds = channels / SMs x (seconds of the collective) + MEMORY_PASSES x (bytes received) / memory bandwidth

NCCL runs one block per channel, which shares its SM with no other kernel (its authors, NVIDIA/nccl issue 689): 24
channels over NVSwitch (log in NVIDIA/nccl-tests issue 100), a few over PCIe, and between nodes two for each card (16
for 8 cards, NVIDIA/nccl issue 1453; 8 for 4, issue 1412). Its ring writes a received byte to a buffer, reads it there
and writes it to the result (or adds a value that it reads). So a second of hidden communication costs half a second
inside a node and a tenth to a sixth between nodes, where bytes come slowly. Not fitted: FSDP on 4 GPUs of one node
(A100, H100, MI250, MI210; arXiv 2507.03114, abstract) computes 18.9% slower beside its communication, and one after
the other is 10.2% slower than that, so 1.189 x 1.102 - 1 = 0.31 of communication cost 0.189, that is OVERLAP_COST; the
formula gives 0.56 on A100 and 0.51 on H100. Left out: copy engines and in-switch reductions, which take less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OVERLAP_COST = 0.61
"""Measured inside a node: seconds that a second of hidden communication costs."""
NVLINK_CHANNELS, PCIE_CHANNELS, CHANNELS_PER_CARD = 24, 4, 2
MEMORY_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class Contention:
    """A device's: what one channel takes of it, and what a received byte costs its memory, in seconds."""

    channel_share: float
    s_per_byte: float

    def taken_s(self, op: str, ranks: Any, channels: Any, size: Any, seconds: Any) -> Any:
        """Of one collective of `size` bytes (as in `program.Exchange`) that takes so many seconds.

        >>> a100 = Contention(channel_share=1 / 108, s_per_byte=MEMORY_PASSES / 2039e9)
        >>> round(float(a100.taken_s("all_gather", 8, NVLINK_CHANNELS, 8e9, 7e9 / 230e9)) / (7e9 / 230e9), 2)
        0.56
        """
        received = size * (ranks - 1) / ranks * (2 if op == "all_reduce" else 1)
        return self.channel_share * channels * seconds + self.s_per_byte * received
