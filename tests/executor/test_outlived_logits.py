"""Logits that outlive their microbatch: what the last stage of a pipeline then needs beyond its tensors.

Aleph Alpha's trainer, two steps on the caching allocator: layers under full recompute, a head whose logits are gathered
over tensor ranks, a loss in fp32, gradients that are made in the first microbatch and stay, and a buffer that keeps the
logits of two microbatches. Plays scatter. With every tensor of the trainer, also the small ones of rotary positions, 43
of its layouts need 5 to 11 bytes a gathered logit beyond their tensors, 8 in the middle, which is `OUTLIVED`; those
here have fewer tensors and need less. Bytes.
"""

import statistics

import pytest

from cost_models.memory.fragments import OUTLIVED
from executor.check.allocator import Allocator, Block, Card, OutOfMemory

MIB, VOCAB, MICROBATCHES, REPLICAS, BUCKET = 2**20, 128000, 4, 8, 10**9


class Stage:
    """`layers` layers and the head on one of `tensor` ranks, on a card of `limit` bytes."""

    def __init__(self, layers: int, hidden: int, tokens: int, tensor: int, limit: int) -> None:
        self.pool, self.sizes = Allocator(card=Card(limit)), dict[Block, int]()
        self.layers, self.hidden, self.tensor, self.live, self.peak = layers, hidden, tensor, 0, 0
        self.row, self.logit = tokens * hidden, tokens * VOCAB
        self.gradients: dict[object, Block] = {}

    def new(self, *sizes: int) -> list[Block]:
        made = [self.pool.allocate(size) for size in sizes]
        self.sizes.update(zip(made, sizes, strict=True))
        self.live += sum(sizes)
        self.peak = max(self.peak, self.live)
        return made

    def free(self, *blocks: Block) -> None:
        for block in blocks:
            self.live -= self.sizes.pop(block)
            self.pool.release(block)

    def gradient(self, key: object, weights: int) -> None:
        made = self.new(2 * weights // self.tensor)
        if key in self.gradients:
            self.free(*made)
        else:
            self.gradients[key] = made[0]

    def inside(self) -> list[Block]:
        """What a layer keeps: whole rows, then a rank's share of Q, K, V, the result and the MLP's inside."""
        shares = (6, 2, 2, 2, 5, 5, 5, 5)
        return self.new(2 * self.row, *(one * self.row // self.tensor for one in shares), *2 * [2 * self.row])

    def steps(self) -> None:
        weights = (12 * self.hidden**2 * self.layers + self.hidden * VOCAB) // self.tensor
        shard = 4 * weights // REPLICAS
        _resident = self.new(2 * weights, shard)
        states: list[Block] = []
        for _ in range(2):
            outputs = self.microbatches()
            self.reduce()
            wide = self.new(shard)
            self.free(*self.gradients.values(), *outputs, *wide)
            self.gradients = {}
            states = states or self.new(shard, shard)

    def reduce(self) -> None:
        """Gradients in buckets: a flat copy, and that in fp32."""
        bucket = 0
        for gradient in self.gradients.values():
            bucket += self.sizes[gradient]
            if bucket > BUCKET:
                self.free(*self.new(bucket, 2 * bucket))
                bucket = 0

    def microbatches(self) -> list[Block]:
        """All of a step; the logits that stay."""
        outputs = dict[int, Block]()
        for microbatch in range(MICROBATCHES):
            rows = []
            for _ in range(self.layers):
                rows += self.new(2 * self.row)
                self.free(*self.inside())
            rows += self.new(2 * self.row)
            logits = self.gathered()
            if old := outputs.get(microbatch % 2):
                self.free(old)
            outputs[microbatch % 2] = logits
            self.loss()
            self.backward(rows)
        return list(outputs.values())

    def gathered(self) -> Block:
        parts = self.new(*self.tensor * [2 * self.logit // self.tensor])
        if self.tensor == 1:
            return parts[0]
        (joined,) = self.new(2 * self.logit)
        self.free(*parts)
        return joined

    def loss(self) -> None:
        wide, logs = self.new(4 * self.logit, 4 * self.logit)
        self.free(wide)
        of_logs, of_wide = self.new(4 * self.logit, 4 * self.logit)
        self.free(of_logs, logs)
        of_logits = self.new(2 * self.logit)
        self.free(of_wide)
        own = self.new(2 * self.logit // self.tensor)
        self.free(*of_logits)
        self.gradient("head", self.hidden * VOCAB)
        self.free(*own)

    def backward(self, rows: list[Block]) -> None:
        (slope,) = self.new(2 * self.row)
        self.free(rows.pop())
        for layer in reversed(range(self.layers)):
            again = self.inside()
            for place, weights in enumerate((2.7, 2.7, 2.7, 1, 3)):
                (flow,) = self.new(5 * self.row // self.tensor)
                self.gradient((layer, place), int(weights * self.hidden**2))
                self.free(flow, again.pop(), again.pop())
            self.free(*again)
            (following,) = self.new(2 * self.row)
            self.free(slope, rows.pop())
            slope = following
        self.free(slope)


def beyond(layers: int, hidden: int, tokens: int, tensor: int) -> float:
    """Bytes for each logit that the smallest card has beyond the step's tensors."""

    def runs(limit: int) -> Stage | None:
        stage = Stage(layers, hidden, tokens, tensor, limit)
        try:
            stage.steps()
        except OutOfMemory:
            return None
        return stage

    free = runs(2**50)
    assert free is not None
    low, high = free.peak, free.pool.reserved
    while high - low > 256 * MIB:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle) else (middle, high)
    return (high - free.peak) / (tokens * VOCAB)


@pytest.mark.parametrize(("tensor", "widths"), [((1,), OUTLIVED / 2), ((2, 4, 8), OUTLIVED)])
def test_two_logits_that_stay_cost_what_is_counted(tensor, widths):
    shapes = [(10, 5120, 8192), (13, 6656, 8192), (8, 8192, 16384)]
    found = [beyond(*shape, ranks) for shape in shapes for ranks in tensor]
    assert 0.75 * 2 * widths < statistics.median(found) < 1.1 * 2 * widths, found
