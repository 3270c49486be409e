"""What several products of one shape take in one grouped call, as the experts of a layer have them.

    group = ((slow · FLOPs / limit + exposed · bytes / bandwidth)^8 + call^8)^(1/8),   call of `groups` = groups · group
    bytes = both factors once, and the result; a weight gradient reads and writes its accumulator instead

Alone, a product hides its traffic behind its tiles, and in a timed loop its weights stay in the cache. Each group
has other weights and sums, which come from memory while little else runs: FLOPs and traffic add up. `limit` is
that of a busy board (`power_limit.py`), with the idle ends of one group filled by the next (its calls lie on four
streams); `call` is what the host needs to launch a group. Units: seconds, FLOP/s, bytes. Left out: unequal groups.
"""

from __future__ import annotations

from msgspec import Struct

from cost_models.number import Number
from cost_models.timing.power_limit import SHARPNESS


class Grouped(Struct, frozen=True, kw_only=True):
    """
    >>> form = Grouped(slow=1.0, exposed=1.2, call_s=1e-5)
    >>> round(form.group_s(1e12, 1e9, limit_flops=1e15, bytes_per_s=1e13) * 1e6)
    1120
    """

    slow: float
    exposed: float
    call_s: float

    def group_s(self, flops: Number, moved: Number, limit_flops: float, bytes_per_s: float) -> Number:
        """Seconds of one group of so many FLOPs and bytes."""
        device_s = self.slow * flops / limit_flops + self.exposed * moved / bytes_per_s
        return (device_s**SHARPNESS + self.call_s**SHARPNESS) ** (1 / SHARPNESS)
