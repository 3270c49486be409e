"""What the words of a row's cells mean; a word that is not understood is named in an InputError, never passed over.

    network("8x ConnectX-7 NDR 400 Gb/s")   -> 8 cards of 50 GB/s      network("400 Gb/s per GPU") -> one for each GPU
    link_bytes_per_s("NVLink4 900GB/s")     -> 450 GB/s: printed both ways unless the cell says "per direction"
    dtype("MXFP8"), dtype("amp_bf16")       -> "fp8", "bf16"           sharding("ZeRO-2 over 4") -> ZeRO-2 over 4 ranks

Rates between nodes are one way, as networks print them; Gb/s are 10^9 bits. Left out: cells that hold numbers alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cost_models.errors import InputError
from cost_models.hardware.networks import NetworkKind
from cost_models.strategy import LayerRange, Offload, OffloadStates, Recompute

_RATE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([TG])(?:(b)(?:it)?|(B))(?:/s|ps)(?!\w)")
_COUNT = re.compile(r"(?<![\w.-])(\d+)\s*[x×]")
_OF = re.compile(r"(?:\b(?:per|an?|each)\s+|/\s*)(node|gpu|card|nic|hca|port)\b", re.IGNORECASE)
_NETWORK_WORDS = re.compile(
    r"ib|infiniband|[hnexf]dr|roce(v2)?|rdma|efa(v\d)?|opa|omni-path|intel|slingshot(-\d+)?|ethernet|connectx-\d+|cx\d|"
    r"mellanox|nvidia|hpe|quantum(-\d)?|cards?|nics?|hcas?|adapters?|recalled"
)
_KINDS: tuple[tuple[str, NetworkKind], ...] = (
    (r"\broce(v2)?\b", "roce"), (r"\b(opa|omni-path)\b", "omni-path"), (r"\bslingshot", "slingshot"),
    (r"\b(ib|infiniband|[hnexf]dr)\b", "infiniband"),
)  # fmt: skip
"""Words of networks that are priced apart. EFA is the preset's of its provider; Ethernet may be RoCE or TCP."""
EXPERTS = re.compile(r"expert|moe|top_?k", re.IGNORECASE)
"""In the name of a column: it tells of a mixture."""
_LINK_WORDS = re.compile(
    r"nvlink|nvlink-?\d(\.\d)?|nvswitch|pcie(\d(\.\d)?)?|gen\d|sxm\d?|hgx|dgx|\d(\.\d)?|recalled|of"
)
_ONE_WAY = re.compile(r"per direction|each (?:direction|way)|one[- ]way|unidirectional", re.IGNORECASE)
_BOTH_WAYS = re.compile(r"bidirectional|both ways|both directions", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class NetworkWords:
    """Cards of a node and the rate of each, bytes/s one way. `cards` None: `bytes_per_s` is that of the whole node."""

    cards: int | None
    bytes_per_s: float
    of_each_gpu: bool = False  # `cards` are those of one GPU
    kind: NetworkKind | None = None  # None: the cell names none


def network(text: str) -> NetworkWords | None:
    """The meaning of an `inter_bw` cell; None where it is blank.

    >>> network("8x200 Gb/s HDR IB per node"), network("1600 Gb/s per node").cards, network("").__class__.__name__
    (NetworkWords(cards=8, bytes_per_s=25000000000.0, of_each_gpu=False, kind='infiniband'), None, 'NoneType')
    """
    if not text:
        return None
    bytes_per_s, rest = _rate("inter_bw", text)
    if bytes_per_s is None:
        raise InputError(f"inter_bw={text!r} names no rate; write 8x400 Gb/s, or leave it blank for the maker's own")
    counts, rest = _COUNT.findall(rest), _COUNT.sub(" ", rest)
    of, rest = [word.lower() for word in _OF.findall(rest)], _OF.sub(" ", rest)
    _all_known("inter_bw", text, rest, _NETWORK_WORDS)
    if len(counts) > 1 or len(of) > 1:
        raise InputError(f"inter_bw={text!r} has two readings; write one, as 8x400 Gb/s")
    kinds: list[NetworkKind] = [kind for word, kind in _KINDS if re.search(word, text, re.IGNORECASE)]
    if len(kinds) > 1:
        raise InputError(f"inter_bw={text!r} names two networks: {' and '.join(kinds)}; write one")
    kind = kinds[0] if kinds else None
    if of == ["gpu"]:
        return NetworkWords(cards=int(counts[0]) if counts else 1, bytes_per_s=bytes_per_s, of_each_gpu=True, kind=kind)
    if counts:
        return NetworkWords(cards=int(counts[0]), bytes_per_s=bytes_per_s, kind=kind)
    if of == ["node"]:
        return NetworkWords(cards=None, bytes_per_s=bytes_per_s, kind=kind)
    raise InputError(f"inter_bw={text!r} does not say of how many cards; write 8x400 Gb/s, per node, or per GPU")


def link_bytes_per_s(text: str, link: str) -> float | None:
    """One way's bytes/s of an `intra_bw` cell; None where it prints no rate. `link` is the GPU's own, as "nvlink4".

    >>> link_bytes_per_s("NVLink 600GB/s", "nvlink3") / 1e9, link_bytes_per_s("450 GB/s per direction", "nvlink4") / 1e9
    (300.0, 450.0)
    """
    bytes_per_s, rest = _rate("intra_bw", text)
    one_way, rest = bool(_ONE_WAY.search(rest)), _BOTH_WAYS.sub(" ", _ONE_WAY.sub(" ", rest))
    of = [word.lower() for word in _OF.findall(rest)]
    if of not in ([], ["gpu"]):
        raise InputError(f"intra_bw={text!r} is the rate of a {of[0]}; legal: of a GPU")
    rest = _OF.sub(" ", rest)
    _all_known("intra_bw", text, rest, _LINK_WORDS)
    for kind in ("nvlink", "pcie"):
        if kind in rest.lower() and not link.startswith(kind):
            raise InputError(f"intra_bw={text!r}, but this GPU's preset has {link}; legal: {link} or blank")
    return bytes_per_s if bytes_per_s is None or one_way else bytes_per_s / 2


def _rate(column: str, text: str) -> tuple[float | None, str]:
    """The one rate in bytes/s (None without one), and the text without it."""
    rates = _RATE.findall(text)
    if len(rates) > 1:
        raise InputError(f"{column}={text!r} has {len(rates)} rates; write one")
    if not rates:
        return None, text
    number, scale, bits, _ = rates[0]
    return float(number) * {"T": 1e12, "G": 1e9}[scale] / (8 if bits else 1), _RATE.sub(" ", text)


def _all_known(column: str, text: str, rest: str, known: re.Pattern[str]) -> None:
    for word in re.findall(r"[^\s,;()+]+", rest.lower()):
        bare = word.strip(".:")
        if bare and bare not in ("a", "an", "the", "and", "with", "of") and not known.fullmatch(bare):
            raise InputError(f"{column}={text!r}: {word!r} is not understood")


_DTYPES = {
    "bf16": ("bf16", "bfloat16"), "fp16": ("fp16", "float16", "half"),
    "fp8": ("fp8", "float8", "mxfp8", "e4m3", "e5m2"), "fp4": ("fp4", "nvfp4", "mxfp4"),
}  # fmt: skip
_SCALINGS = ("amp", "mixed", "precision", "cs", "mx", "per", "tensor", "subchannel", "variant", "rowwise", "tensorwise",
             "blockwise", "current", "delayed", "scaling", "hybrid")  # fmt: skip
_UNPRICED = re.compile(r"\b(int8|int4|nf4|qlora|4-?bit|8-?bit)\b", re.IGNORECASE)
Products = Literal["bf16", "fp16", "fp8", "fp4"]


def dtype(text: str, remarks: str = "") -> Products:
    """The dtype of a layer's products from a `precision` cell; `remarks` may say float8 of rows that are bf16 else.

    >>> dtype("FP8 (MX / subchannel variant)"), dtype("bf16", "compile, float8"), dtype("NVFP4"), dtype("")
    ('fp8', 'fp8', 'fp4', 'bf16')
    """
    unpriced = _UNPRICED.search(f"{text}, {remarks}")
    if unpriced:
        raise InputError(f"{unpriced[1]!r}: such products or weights have no price here; legal: bf16, fp16, fp8, fp4")
    named: set[Products] = set()
    for word in filter(None, re.split(r"[^a-z0-9]+", text.lower())):
        found: list[Products] = [name for name, words in _DTYPES.items() if word in words]  # type: ignore[misc]
        if not found and word not in _SCALINGS:
            raise InputError(f"precision={text!r}: {word!r} is not understood; legal: bf16, fp16, fp8, fp4")
        named.update(found)
    if "fp4" in named or re.search(r"\b(nvfp4|mxfp4|fp4)\b", remarks, re.IGNORECASE):
        return "fp4"
    if re.search(r"\b(float8|fp8|mxfp8)\b", remarks, re.IGNORECASE) or "fp8" in named:
        return "fp8"
    if len(named) > 1:
        raise InputError(f"precision={text!r} names two dtypes; legal: bf16, fp16, fp8, fp4")
    return named.pop() if named else "bf16"


@dataclass(frozen=True, kw_only=True)
class ShardingWords:
    zero: int | None = None
    group: int | None = None  # ranks that share one copy; None: all that may
    in_node: bool = False  # FSDP's HYBRID_SHARD: the ranks of a node share one
    sequence_parallel: bool | None = None  # None: as the framework has it


_STAGES = (
    (r"zero[-_ ]?([0-3])\b|\bstage[-_ =]?([0-3])\b", None), (r"\bshard_grad_op\b", 2), (r"\bfull_shard\b", 3),
    (r"\bdistributed optimizer\b", 1), (r"\b(?:ddp|no_shard|none|unsharded)\b", 0),
)  # fmt: skip
_SHARDING_WORDS = re.compile(r"ptd-p|interleaved|1f1b|deepspeed|megatron(-lm)?|lora|frozen|base")


def sharding(text: str) -> ShardingWords:
    """ZeRO's stage and the group that shares a copy, from a `sharding` cell.

    >>> sharding("FSDP HYBRID_SHARD group=4"), sharding("zero1 group=-1 (-1 = all dp)").zero
    (ShardingWords(zero=3, group=4, in_node=False, sequence_parallel=None), 1)
    """
    rest, stages, group = text.lower().replace("(-1 = all dp)", " "), set(), None
    for number in re.findall(r"group\s*=\s*(-?\d+)|\bover (\d+)\b|\bfsdp2? (\d+)\b", rest):
        group = int("".join(number))
    rest = re.sub(r"group\s*=\s*-?\d+|\bover \d+\b|(?<=fsdp) \d+\b|(?<=fsdp2) \d+\b", " ", rest)
    parallel = re.search(r"\b(no )?sequence parallel(?:ism)?\b", rest)
    rest = re.sub(r"\b(no )?sequence parallel(?:ism)?\b", " ", rest)
    for pattern, stage in _STAGES:
        for number in re.finditer(pattern, rest):
            stages.add(int("".join(filter(None, number.groups()))) if stage is None else stage)
        rest = re.sub(pattern, " ", rest)
    hybrid, rest = re.findall(r"\bhsdp\b|\bhybrid_shard\b", rest), re.sub(r"\bhsdp\b|\bhybrid_shard\b", " ", rest)
    if re.search(r"\bfsdp[12]?\b", rest) or hybrid:
        stages = stages or {3}
    _all_known("sharding", text, re.sub(r"\bfsdp[12]?\b", " ", rest), _SHARDING_WORDS)
    if len(stages) > 1:
        raise InputError(f"sharding={text!r} names two stages: {', '.join(map(str, sorted(stages)))}")
    if "hsdp" in hybrid and group is None:
        raise InputError(f"sharding={text!r} does not say over how many ranks; write HSDP group=N")
    shared = group if group is None or group > 0 else None
    return ShardingWords(
        zero=next(iter(stages), None),
        group=shared,
        in_node=bool(hybrid) and group is None,
        sequence_parallel=None if parallel is None else parallel[1] is None,
    )


_OFFLOADED = {
    "activations": ("activations", "activation", "act"), "optimizer": ("optimizer", "optimizers"),
    "param": ("param", "params", "parameters", "parameter"), "kv": ("kv",),
}  # fmt: skip
_OFFLOAD_WORDS = re.compile(r"none|no|to|on|in|the|and|cpu|host|memory|states|checkpoints?|ckpts?|chunked")


def offload(text: str) -> tuple[Offload, OffloadStates, bool]:
    """What is in host memory, from an `offload` cell: what layers keep, states, and whether keys and values go in
    chunks.

    >>> offload("optimizer+param CPU"), offload("act ckpt CPU + chunked KV")
    (('none', 'all', False), ('activations', 'none', True))
    """
    words = set(re.findall(r"[^\s,;()+]+", text.lower()))
    found = {name for name, forms in _OFFLOADED.items() if words & set(forms)}
    rest = words - {form for forms in _OFFLOADED.values() for form in forms}
    _all_known("offload", text, " ".join(sorted(rest)), _OFFLOAD_WORDS)
    if words and not found and not words & {"none", "no"}:
        raise InputError(f"offload={text!r} does not say what; legal: activations, optimizer, param, or none")
    states: OffloadStates = "all" if "param" in found else "optimizer" if "optimizer" in found else "none"
    return ("activations" if "activations" in found else "none", states, "kv" in found)


_RECOMPUTES: dict[str, Recompute] = {
    "": "none", "none": "none", "no": "none", "full": "full", "selective": "core_attention",
    "selective(attention)": "core_attention", "selective op": "other_products", "selective layer 1": "full",
    "selective moe": "mixture", "selective act": "elementwise",
}  # fmt: skip


def layer_ranges(text: str, layers: int, offloaded: Offload) -> tuple[LayerRange, ...]:
    """Ranges of layers by what they keep, from a `recompute` cell: full; selective (Megatron: attention's core);
    selective layer N (torchtitan: every Nth layer is recomputed); selective op (torchtitan: every other product);
    selective moe (Megatron: mixtures and norms); selective act (norms and activations).

    >>> [(one.recompute, one.count) for one in layer_ranges("selective layer 2", 5, "none")]
    [('none', 1), ('full', 1), ('none', 1), ('full', 1), ('none', 1)]
    """
    text = text.lower()
    if text in _RECOMPUTES:
        return (LayerRange(recompute=_RECOMPUTES[text], offload=offloaded, count=layers),)
    every = re.fullmatch(r"selective layer (\d+)", text)
    if not every or int(every[1]) < 2:
        raise InputError(
            f"recompute={text!r} is not understood; legal: full, selective, selective op, selective moe, "
            "selective act, selective layer N, none"
        )
    groups, rest = divmod(layers, int(every[1]))
    kept = LayerRange(count=int(every[1]) - 1)
    return (kept, LayerRange(recompute="full", offload=offloaded, count=1)) * groups + (
        (LayerRange(count=rest),) if rest else ()
    )


def lengths(text: str) -> tuple[tuple[int, int], ...]:
    """Documents packed into a row, from a `lengths` cell: (tokens, count).

    >>> lengths("4x11910 1x294"), lengths("")
    (((11910, 4), (294, 1)), ())
    """
    found = [re.fullmatch(r"(\d+)[x×](\d+)", word) for word in text.split()]
    if not all(found):
        raise InputError(f"lengths={text!r} is not understood; write documents as 4x11910 1x294")
    return tuple((int(one[2]), int(one[1])) for one in found if one)


def lora_rank(remarks: str) -> int | None:
    """Rank of the adapters that remarks name; 0 where they name none, None where they do not say the rank.

    >>> lora_rank("LoRA r=8, alpha 16"), lora_rank("lora_rank=16"), lora_rank("task=LoRA"), lora_rank("without LoRA")
    (8, 16, None, 0)
    """
    text = re.sub(r"\b(?:no|not|without) lora\b", " ", remarks.lower())
    if not re.search(r"(?<![a-z0-9])lora", text):
        return 0
    rank = re.search(r"(?:\b|_)(?:rank|r|dim)\s*[=: ]\s*(\d+)", text)
    return int(rank[1]) if rank else None


def is_mixture(model: str) -> bool:
    """Whether a model's name says that it has experts.

    >>> is_mixture("Mixtral-8x7B"), is_mixture("qwen3-30b-a3b"), is_mixture("llama3-8b")
    (True, True, False)
    """
    known = r"moe|\d+x\d+(\.\d+)?b|[-_]a\d+(\.\d+)?b\b|mixtral|dbrx|grok|deepseek-?v[23]|gpt[-_ ]oss|switch|arctic|kimi"
    return bool(re.search(known, model.lower()))
