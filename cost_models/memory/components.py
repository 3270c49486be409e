"""Peak memory of the busiest rank by component, at the highest moment of the step (`peaks`).

parameters, gradients, optimizer       resident all the time (`states`)
activations   what each layer keeps until its backward pass, the final norm's input, rotary tables
gathered, working, logits              alive at that moment only: full weights; what is recomputed, gradients in
              flight; the loss and the head's gradient        vision   of the rank's frames
fragments     what the allocator holds and no tensor uses       communication, context   of libraries and the driver
"""

from __future__ import annotations

from cost_models.hardware.device import Device
from cost_models.layer.sizes import RankSizes
from cost_models.layer.stages import at_stage, end_stages, is_mixed, stage
from cost_models.memory import peaks
from cost_models.memory.buffers import communication_bytes, context_bytes
from cost_models.memory.fragments import fragment_bytes
from cost_models.memory.peaks import Peak, final_norm_input, kept_bytes, microbatches_in_flight, stage_outputs
from cost_models.memory.states import states
from cost_models.memory.vision import held_bytes
from cost_models.number import Number, pick, somewhere
from cost_models.strategy import LayerRange


def components(sizes: RankSizes, activations: Number, moment: Peak, device: Device) -> dict[str, Number]:
    """Components in bytes. `activations`: kept by all layers together; `moment`: the highest of the step."""
    key = ("at every moment", device.link, device.architecture)  # all that libraries' bytes ask of a device
    held, libraries, outside = sizes.once(key, lambda: _at_every_moment(sizes, device))
    return {
        **held,
        "gathered": moment.gathered,
        "activations": activations * microbatches_in_flight(sizes) + outside,
        "working": moment.working,
        "logits": moment.logits,
        "vision": held_bytes(sizes),
        "cache": _cache(sizes),
        "fragments": fragment_bytes(sizes, activations, moment, device),
        **libraries,
    }


def _at_every_moment(sizes: RankSizes, device: Device) -> tuple[dict[str, Number], dict[str, Number], Number]:
    """(states, what libraries take, activations outside the layers)."""
    context = context_bytes(device) + 0 * sizes.tokens
    libraries = {"communication": communication_bytes(sizes, device), "context": context}
    return states(sizes), libraries, _outside_layers(sizes)


def _outside_layers(sizes: RankSizes) -> Number:
    """Cosines and sines of the rotary positions and the positions (8 B), and the final norm's input if it is saved."""
    if sizes.workload.mode != "train":
        return 0 * sizes.tokens
    model, width = sizes.workload.model, sizes.width
    last = final_norm_input(sizes) + stage_outputs(sizes)
    if sizes.framework.rotary == "none":
        return last
    tables = sizes.rows * sizes.workload.context_tokens if sizes.framework.whole_rotary else sizes.tokens
    return last + tables * 2 * model.head_dim * width + sizes.tokens * 8


def _cache(sizes: RankSizes) -> Number:
    if sizes.workload.mode == "train":
        return 0 * sizes.tokens
    model, tokens = sizes.workload.model, sizes.rows * sizes.cached_tokens
    columns = 2 * sizes.kv_width if model.latent is None else model.latent.kv_rank + model.latent.rope_dim
    scans = model.layer_kinds.count("ssd")
    keys = tokens * columns * sizes.width * (model.layers - scans) // sizes.degrees.pipeline
    return keys if model.ssd is None else keys + scans * sizes.rows * model.ssd.cached_bytes(sizes.width)


def peak(sizes: RankSizes, ranges: tuple[LayerRange, ...], device: Device) -> dict[str, Number]:
    """Bytes by component, of one rank of the fullest stage."""
    return fullest(sizes, ranges, device)[0]


def fullest(sizes: RankSizes, ranges: tuple[LayerRange, ...], device: Device) -> tuple[dict[str, Number], str]:
    """The same, and the moment of the step."""
    model, stages = sizes.workload.model, sizes.degrees.pipeline
    if not is_mixed(model) and stages == 1:
        kept = sum(kept_bytes(sizes, part) * part.count for part in ranges)
        moment = peaks.peak(sizes, ranges)
        return components(sizes, kept, moment, device), moment.name
    parts_of_fullest: dict[str, Number] = {}
    name = ""
    for index in end_stages(stages):
        here, runs = at_stage(sizes, ranges, index), stage(sizes, ranges, index)
        kept = sum(kept_bytes(here.of(run.kind), run.part) * run.layers for run in runs)
        moment = peaks.peak(here, [(here.of(run.kind), run.part) for run in runs])
        parts = components(here, kept, moment, device)
        more = sum(parts.values()) > sum(parts_of_fullest.values())
        parts_of_fullest = {part: pick(more, size, parts_of_fullest.get(part, 0)) for part, size in parts.items()}
        name = moment.name if somewhere(more) else name
    return parts_of_fullest, name
