"""What the caching allocator holds and no tensor uses, when a step's memory is highest.

    segments      B + 1.6 K        expandable segments   B        a CPU   3% of what comes and goes
    …, equal blocks, one microbatch      0.5 K
    stream pools  + the root's and a layer's gathered weights, + gradients that were dropped
    B    blocks outside the layers that come and go, each in one piece: the logits in the parameter dtype, too small for
         what follows them in fp32, and the root's gradients copied for their reduction, if no copy of the logits leaves
         them room; with a loss in chunks a chunk or the head's gradient in fp32, and the root's gradients (of which
         growing segments keep the larger). Gradients and states settle where those were, so that a loss of two equal
         blocks (logits and their gradient) leaves one, and nothing is lost where states are made before the first step
         and gradients go with each
         Logits that outlive their microbatch settle in its successors' fp32 blocks: half of two such blocks is lost,
         twice that where they are gathered from tensor ranks (`OUTLIVED`)
    K    what a layer keeps, in the mean over a rank's layers

PyTorch's allocator gives a tensor of 10 MiB or more a segment of its own, which later tensors of other sizes split.
Before it fails it gives segments back that are free as a whole: only those in which something settled stay split. Where
that is states alone (one microbatch, whose gradients go with it and are reduced on a stream of their own) and the
loss's blocks are equal, FSDP1's step of an MPT, played on cards that it just fills, needs 0.1 to 1.5 K beyond its
tensors: 0.3 in the middle, 0.5 in four of five shapes (tests/executor/test_pressed_allocator.py). What such a step
reserves on a card with room, no row prints.
1.6 and the rule for B are from that allocator, played on this project's steps (`executor/check/allocator.py`). They
were chosen with the reserved peaks of SimuMax and torchtitan in sight, so that SimuMax's 24 are met within 4% is no
test of them. A block belongs to the stream that it was made on. FSDP2 makes the flat results of gathers on one stream
(two units at a time: the copy out of one hides behind the gather of the next) and those of reductions, of which
gradients are views, on another, so no activation finds room there (torch's _fsdp_collectives.py: all_gather_output,
reduce_output). Bytes of one rank. Left out: that giving segments back and asking again costs time.
"""

from __future__ import annotations

from cost_models.hardware.device import Device
from cost_models.layer.chunked import stream_bytes
from cost_models.layer.sizes import RankSizes
from cost_models.layer.weights import reduced_bytes, stage_root_params, trained_root_params, unit_params
from cost_models.memory.peaks import Peak
from cost_models.memory.states import dropped_gradients
from cost_models.number import Number, both, larger, pick, smaller

KEPT_SHARE, PRESSED_SHARE = 1.6, 0.5
OUTLIVED = 4
"""Times the bytes of gathered logits that stay for two microbatches: 8 B a logit in the middle of 43 plays
(tests/executor/test_outlived_logits.py)."""
CPU_SHARE = 0.03
"""Of glibc's: an estimate."""


def fragment_bytes(sizes: RankSizes, activations: Number, moment: Peak, device: Device) -> Number:
    """`activations`: kept by all layers of the rank together; `moment`: the highest of the step."""
    if device.architecture == "cpu":
        return CPU_SHARE * (moment.total + activations)
    if sizes.workload.mode != "train":
        return moment.working + moment.logits
    pools = _collectives_pools(sizes, moment)
    if sizes.framework.expandable_segments:
        return large_blocks(sizes) + pools
    mean = activations * sizes.degrees.pipeline / sizes.workload.model.layers
    states_alone = both(_equal_blocks(sizes), sizes.degrees.microbatches == 1)
    share = pick(states_alone, PRESSED_SHARE, KEPT_SHARE)
    settled = pick(_nothing_settles(sizes), 0.0, large_blocks(sizes) + share * mean)
    return settled + pools + _copies_pools(sizes)


def _nothing_settles(sizes: RankSizes) -> Number | bool:
    """Whether no tensor that stays is made while activations are gone: states are there before the first step,
    gradients go with it, and the loss holds its logits to its end. The next step finds each block as it was."""
    framework, degrees = sizes.framework, sizes.degrees
    if not framework.early_states or framework.drops_gradients_to is None or framework.logit_bytes is None:
        return False
    return both(degrees.microbatches == 1, degrees.zero <= framework.drops_gradients_to)


def _equal_blocks(sizes: RankSizes) -> bool:
    """Whether a loss holds logits and their gradient, two blocks of one size: what settles in one leaves the other."""
    framework = sizes.framework
    return framework.logit_bytes == 2 * sizes.width and not framework.expandable_segments


def large_blocks(sizes: RankSizes) -> Number:
    """B of the table above."""
    if sizes.stage is not None and not sizes.stage.last:
        return 0 * sizes.tokens
    model, wide, chunk = sizes.workload.model, max(4, sizes.width), sizes.degrees.loss_chunk_tokens
    vocab, root = model.vocab // sizes.degrees.tensor, _reduced_root(sizes)
    if chunk is None:
        if sizes.framework.keeps_outputs:
            return _outlived(sizes)
        logits = sizes.tokens * vocab
        waiting = 0 if _equal_blocks(sizes) else logits * sizes.width
        return waiting + pick(root > logits * wide, root, 0)
    head = model.hidden * vocab * wide if sizes.workload.trains_head else 0
    loss = larger(smaller(sizes.tokens, chunk) * vocab * wide, head)
    return larger(loss, root) if sizes.framework.expandable_segments else loss + root


def _outlived(sizes: RankSizes) -> Number:
    """What logits that stay for two microbatches cost in blocks: two in each of which they take half of an fp32 block,
    and where they are gathered from tensor ranks two more for their parts and their join."""
    model, tensor = sizes.workload.model, sizes.degrees.tensor
    gathered = both(sizes.framework.gathers_logits, tensor > 1)
    logits = sizes.tokens * pick(gathered, model.vocab, model.vocab // tensor)
    several = pick(sizes.degrees.microbatches > 1, 1, 0)
    return several * logits * sizes.width * pick(gathered, OUTLIVED, OUTLIVED / 2)


def _reduced_root(sizes: RankSizes) -> Number:
    """The copy of the root's gradients that is reduced in one piece: not where buckets or resident buffers are."""
    if sizes.framework.bucket_values or sizes.framework.accumulator is not None:
        return 0
    reduced = smaller(trained_root_params(sizes), stage_root_params(sizes)) * reduced_bytes(sizes)
    return pick(both(sizes.degrees.zero >= 2, sizes.degrees.shard > 1), reduced, 0)


def _collectives_pools(sizes: RankSizes, moment: Peak) -> Number:
    """What gathers and reductions keep for themselves: flat results of a root and a layer, gradients that are gone."""
    if not sizes.framework.stream_pools:
        return 0
    gathered = (stage_root_params(sizes) + unit_params(sizes)) * sizes.width
    gathers = both(sizes.degrees.zero >= 1, sizes.degrees.shard > 1)
    used = pick(sizes.degrees.zero == 3, 0, moment.gathered)  # below ZeRO-3 that is a flat result of this pool
    return pick(gathers, gathered - used, 0) + larger(dropped_gradients(sizes) - moment.dropped, 0)


def _copies_pools(sizes: RankSizes) -> Number:
    """Each stream keeps what its copies of chunks once needed."""
    if sizes.degrees.attention_chunk_tokens is None:
        return 0
    return sizes.framework.copy_streams * stream_bytes(sizes)
