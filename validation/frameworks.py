"""The frameworks of published rows: files of `cost_models/frameworks`, and the variants that a row's remarks name."""

from __future__ import annotations

from dataclasses import replace

from cost_models.framework import Framework
from cost_models.workload import Precision

PURE_BF16 = Precision(master="bf16", grad="bf16", reduce="bf16", optimizer="bf16")
"""A model loaded in bf16 and given to AdamW as it is: no fp32 copy of anything."""
EIGHT_BITS = {"megatron-recipes": "megatron-fp8", "ours": "megatron-fp8", "composer-pure": "composer-fp8"}
"""The file of the same code with its layers' products in 8 bits, where there is one."""


def frameworks() -> tuple[Framework, ...]:
    """Every file."""
    return tuple(Framework.load(name) for name in Framework.names())


def in_eight_bits(framework: Framework) -> Framework:
    """The same code with its layers' products in 8 bits.

    >>> in_eight_bits(Framework.load("torchtitan")).product_dtype
    'fp8'
    >>> in_eight_bits(Framework.load("megatron-recipes")).name
    'megatron-fp8'
    """
    if framework.name in EIGHT_BITS and framework == Framework.load(framework.name):
        return Framework.load(EIGHT_BITS[framework.name])
    return replace(framework, title=f"{framework.title}, products in fp8", product_dtype="fp8")
