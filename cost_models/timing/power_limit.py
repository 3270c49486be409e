"""What a matrix product takes on a busy board: its burst time under the power limit, and with an accumulator.

    busy  = ((slow · burst)^8 + (FLOPs / limit)^8)^(1/8) + exposed · accumulator bytes / bandwidth
    limit = the rate at which a board that only multiplies settles; of another board of the architecture
            limit · (SMs ratio)^(3/4) · (power ratio)^(1/4)

A GEMM grid is timed on a cool board. One that has been multiplying for a while is at its power limit and slows its
clock until it fits, so every product that would be faster ends near one rate (A100 PCIe 0.24, H100 0.71 PFLOP/s) and
the others keep theirs. SMs^(3/4) · W^(1/4) follows from power per SM ~ clock^4: ML Engineering's table of matrix
products has A100 SXM (400 W) at 271.2 and A100 PCIe (300 W) at 252.9 TFLOP/s, 1.07 = (4/3)^0.24. A weight gradient
that is added to a resident buffer reads and writes it; `exposed` is the share of that traffic that its product does not
hide. Narrow products are limited by their own power: `dtype_share`. Units: seconds, FLOP/s. Left out: how warm the room
is, boards of a node that share its power, values of the data.
"""

from __future__ import annotations

from msgspec import Struct

from cost_models.hardware.device import Device
from cost_models.number import Number

SHARPNESS = 8
POWER_EXPONENT = 0.25


REACH = {"hopper": {"fp8": 0.91}, "blackwell": {"fp8": 0.97, "fp4": 0.93}}
"""Share of what the ratio of two dtypes' peaks promises, by architecture: fp8 over bf16 1.77 (H100), 1.83 (H200), 1.85
(GH200), 1.97 (B200), 1.90 (B300), 1.98 (GB200) in ML Engineering's tables of achievable products; fp4 6787 TFLOP/s on
GB200 (NVIDIA's blog on cuBLAS 12.9, from memory) over its 1822 of bf16."""
NARROW_REACH = {"fp8": 0.9, "fp4": 0.9}
"""On other architectures: no rows."""
ENERGY = {"blackwell": {"fp8": 0.375, "fp4": 0.156}}
"""Energy of a FLOP over a 16-bit one's, an estimate: half of it moves operands and goes with their bits, half is the
multiplier's and goes with the square of the significand's (8, 4 and 2 bits). On Hopper no row shows it: the best fp8
product (1402.6 TFLOP/s on H100) is what the 16-bit limit's share of the peak gives."""


class Busy(Struct, frozen=True, kw_only=True):
    """Of one board (fitted in `validation/fit/products.py`)."""

    limit_flops: float  # 16-bit
    slow: float  # burst time of a product below the limit, times this: caches and launches of a running program
    exposed: float

    def product_s(self, burst_s: Number, flops: Number, limit_flops: float) -> Number:
        """Seconds at `limit_flops` (of the product's dtype).

        >>> Busy(limit_flops=1e12, slow=1.0, exposed=0.4).product_s(1.0, 1e6, 1e12)
        1.0
        """
        return limited_s(burst_s * self.slow, flops, limit_flops)


def limited_s(seconds: Number, flops: Number, limit_flops: float) -> Number:
    """What a kernel of so many seconds takes on a board that sustains `limit_flops`; far below the limit the same."""
    return (seconds**SHARPNESS + (flops / limit_flops) ** SHARPNESS) ** (1 / SHARPNESS)


def reach(device: Device, dtype: str) -> float:
    """Share of the ratio of peaks that products of `dtype` reach of 16-bit ones'."""
    return REACH.get(device.architecture, NARROW_REACH).get(dtype, 1.0)


def dtype_share(device: Device, dtype: str) -> float:
    """What a busy board sustains of `dtype` over what it does of 16 bits: reach · ratio · (ratio · energy)^-¼.

    >>> round(dtype_share(Device.load("gb200"), "fp8"), 2), dtype_share(Device.load("gb200"), "bf16")
    (2.08, 1.0)
    """
    ratio = device.peak(dtype) / device.peak_16bit
    energy = ENERGY.get(device.architecture, {}).get(dtype)
    return reach(device, dtype) * ratio * (1.0 if energy is None else (ratio * energy) ** -POWER_EXPONENT)


def limit_flops(device: Device, base: Device, board: Device, measured: float) -> float:
    """16-bit FLOP/s that `device` sustains; `measured` is what `board` did, `base` the device whose curves are read."""
    if device.name == board.name:
        return measured
    if device.sustained_flops is not None:
        return device.sustained_flops
    if device.architecture != base.architecture:
        return limit_flops(base, base, board, measured) * device.peak_16bit / base.peak_16bit
    known, flops = (base, base.sustained_flops) if base.sustained_flops is not None else (board, measured)
    if None in (device.power_w, known.power_w, device.sms, known.sms):
        return flops * device.peak_16bit / known.peak_16bit
    assert device.power_w and known.power_w and device.sms and known.sms
    sms, power = device.sms / known.sms, device.power_w / known.power_w
    return float(flops * sms ** (1 - POWER_EXPONENT) * power**POWER_EXPONENT)
