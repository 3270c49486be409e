"""What the host needs before the device can begin: Python, dispatch and launches of an eager framework, in seconds.

    calls back to back: the larger of what the host and what the device take, per call

Matters where the device has little to do (short rows, many hops). Left out: other processes on the host's cores,
which the published rows show to be worth a factor of two, and Python's garbage collection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from cost_models.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Host:
    """
    >>> PYTORCH_2024.send_s(messages=4) > PYTORCH_2024.collective_s
    True
    """

    operator_s: float  # one eager operator, from Python to the launch
    attention_s: float  # one call of a fused attention: arguments in Python, output and log-sum-exp allocated
    collective_s: float  # one call of c10d: communicator, two events, a work object, streams noted, group launched
    message_s: float  # one ncclSend or ncclRecv in a group: cut over the channels, one entry each

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise InputError(f"host {field.name}={getattr(self, field.name)} must be at least 0")

    def send_s(self, messages: int) -> float:
        """One grouped call with so many sends and receives."""
        return self.collective_s + messages * self.message_s


PYTORCH_2024 = Host(operator_s=10e-6, attention_s=60e-6, collective_s=100e-6, message_s=35e-6)
"""PyTorch 2 with NCCL 2.18 to 2.20. An eager operator takes 5 to 25 us of host time (public lessons on its dispatcher),
a call of c10d 50 to 100 us. A message, an entry for each of 32 channels, is what these leave of ring-flash-attn's first
benchmark on 8 H800 (README of early 2024, 8,192 tokens of 5 heads x 128 each, forward): zigzag 283 and striped 259.6
passes a second, 3.53 and 3.85 ms of which the kernels need 2.6 and 2.9, give 34 and 35 us for each of 28."""
PYTORCH_COMPILED = Host(operator_s=5e-6, attention_s=30e-6, collective_s=100e-6, message_s=35e-6)
"""torch.compile: Inductor's wrapper calls each kernel without dispatcher, autograd and Python module: half of an eager
call (estimate; no row of a compiled layer that waits for its host is known). Collectives stay eager."""
TRANSFORMER_ENGINE = Host(operator_s=30e-6, attention_s=100e-6, collective_s=100e-6, message_s=35e-6)
"""Megatron-Core's modules over Transformer Engine's: what an operator takes at no bytes is 30 us on SimuMax's B200 and
40 on its A100 (kernels_simumax_network_fit.json), three eager ones of PyTorch. Attention: estimate, as much more."""
HOSTS = {"pytorch-2024": PYTORCH_2024, "pytorch-compiled": PYTORCH_COMPILED, "transformer-engine": TRANSFORMER_ENGINE}
