"""A card that is nearly full: what PyTorch's allocator gives back, and what one step of FSDP1 then needs.

The step is an MPT's under Composer, one microbatch: a layer's tensors as autograd keeps them, a loss that holds bf16
logits and their gradient, its two training metrics, weights gathered on one stream, gradients reduced in fp32 on
another, AdamW's states made after the first step. `PRESSED_SHARE` comes from such plays, which scatter: a block that
happens to be split decides. Bytes; a row is tokens x hidden values.
"""

import statistics

import pytest

from cost_models.memory.fragments import KEPT_SHARE, PRESSED_SHARE
from executor.check.allocator import Allocator, Block, Card, OutOfMemory

MIB, VOCAB, KEPT = 2**20, 50368, 32
Tensor = tuple[Allocator, Block, int]


def test_what_is_free_as_a_whole_is_given_back_and_what_is_split_is_not():
    card = Card(100 * MIB)
    first, second = Allocator(card=card), Allocator(card=card)
    for one in [first.allocate(size * MIB) for size in (40, 30)]:
        first.release(one)
    second.allocate(60 * MIB)  # 70 are held and no tensor is there: both segments go
    assert (first.reserved, second.reserved, card.retries) == (0, 60 * MIB, 1)
    whole = first.allocate(40 * MIB)
    first.release(whole)
    first.allocate(12 * MIB)  # a part of the 40 stays, and so all of it
    with pytest.raises(OutOfMemory):
        second.allocate(12 * MIB)


class Run:
    """Steps of a model of so many layers on one rank of several, on a card of so many bytes."""

    def __init__(self, layers: int, hidden: int, tokens: int, ranks: int, limit: int) -> None:
        self.layers, self.hidden, self.row, self.logits = layers, hidden, tokens * hidden, 2 * tokens * VOCAB
        self.layer, self.root, self.ranks = 12 * hidden**2, VOCAB * hidden, ranks
        card = Card(limit)
        self.pools = {name: Allocator(card=card) for name in ("compute", "gather", "reduce")}
        self.live = self.peak = 0
        self.shards = [4 * size // ranks for size in [*layers * [self.layer], self.root]]

    def new(self, size: int, stream: str = "compute") -> Tensor:
        self.live += size
        self.peak = max(self.peak, self.live)
        return self.pools[stream], self.pools[stream].allocate(size), size

    def rows(self, *each: int) -> list[Tensor]:
        """Tensors of so many bytes for each value of a row."""
        return [self.new(one * self.row) for one in each]

    def free(self, *tensors: Tensor) -> None:
        for pool, block, size in tensors:
            self.live -= size
            pool.release(block)

    def steps(self, count: int) -> None:
        _weights = [self.new(size) for size in self.shards]
        states: list[Tensor] = []
        for _ in range(count):
            self.free(*self.backward(*self.forward()))
            states = states or [self.new(size) for size in self.shards for _ in range(2)]

    def forward(self) -> tuple[Tensor, list[list[Tensor]], Tensor]:
        root, kept, (x,) = self.new(2 * self.root, "gather"), [], self.rows(2)
        for _ in range(self.layers):
            weights = self.new(2 * self.layer, "gather")
            normed, qkv, heads, branch, x2 = self.rows(2, 6, 2, 2, 2)
            self.free(branch)
            normed2, up, gelu, branch, out = self.rows(2, 8, 8, 2, 2)
            self.free(branch, weights)
            kept.append([x, normed, qkv, heads, x2, normed2, up, gelu])
            x = out
        return root, kept, x

    def backward(self, root: Tensor, kept: list[list[Tensor]], x: Tensor) -> list[Tensor]:
        """Loss and gradients; the rank's shards of them."""
        normed, logits, slope = *self.rows(2), self.new(self.logits), self.new(self.logits)
        dx, of_head = *self.rows(2), self.new(2 * self.root)
        self.free(slope, normed, x)
        shards = []
        for tensors in reversed(kept):
            weights = self.new(2 * self.layer, "gather")
            dx = self.layer_backward(dx, tensors)
            shards.append(self.reduced(self.layer))
            self.free(weights)
        of_embedding = self.new(2 * self.root)
        self.free(dx, of_embedding, of_head)
        shards.append(self.reduced(self.root))
        for _ in range(2):  # training metrics: the loss again, in fp32
            self.free(self.new(2 * self.logits), self.new(2 * self.logits))
        self.free(root, logits)
        return shards

    def layer_backward(self, dx: Tensor, tensors: list[Tensor]) -> Tensor:
        x, normed, qkv, heads, x2, normed2, up, gelu = tensors
        (d_gelu,), of_down = self.rows(8), self.new(8 * self.hidden**2)
        self.free(gelu)
        (d_up,) = self.rows(8)
        self.free(d_gelu, up)
        (d_normed2,), of_up = self.rows(2), self.new(8 * self.hidden**2)
        self.free(d_up, normed2)
        d_x2, total = self.rows(2, 2)
        self.free(d_normed2, x2, dx, d_x2)
        (d_heads,), of_out = self.rows(2), self.new(2 * self.hidden**2)
        d_qkv, wide = self.rows(6, 4)
        self.free(wide, d_heads, heads, qkv)
        (d_normed,), of_qkv = self.rows(2), self.new(6 * self.hidden**2)
        self.free(d_qkv, normed)
        d_x, result = self.rows(2, 2)
        self.free(d_normed, total, d_x, x, of_down, of_up, of_out, of_qkv)
        return result

    def reduced(self, weights: int) -> Tensor:
        flat, wide = self.new(2 * weights), self.new(4 * weights, "reduce")
        shard = self.new(4 * weights // self.ranks, "reduce")
        self.free(flat, wide)
        return shard


def least_share(layers: int, hidden: int, tokens: int, ranks: int) -> float:
    """How much more than its tensors the smallest card holds on which three steps run, over what a layer keeps."""

    def runs(limit: int) -> Run | None:
        run = Run(layers, hidden, tokens, ranks, limit)
        try:
            run.steps(3)
        except OutOfMemory:
            return None
        return run

    free = runs(2**50)
    assert free is not None
    low, high = free.peak, sum(pool.reserved for pool in free.pools.values())
    while high - low > 32 * MIB:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle) else (middle, high)
    return (high - free.peak) / (KEPT * hidden * tokens)


SHAPES = [
    (24, 2048, 20480, 32), (24, 2048, 20480, 128), (24, 1024, 36864, 16), (24, 1024, 36864, 128), (32, 2560, 12288, 32),
    (32, 2560, 12288, 128), (32, 4096, 12288, 32), (16, 2048, 40960, 16), (16, 1024, 16384, 8),
]  # fmt: skip


def test_most_pressed_steps_need_less_than_half_of_what_a_layer_keeps():
    shares = [least_share(*shape) for shape in SHAPES]
    assert 0 < statistics.median(shares) < PRESSED_SHARE < max(shares) < KEPT_SHARE
