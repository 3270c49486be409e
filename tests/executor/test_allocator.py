"""PyTorch's caching allocator, played: sizes, reuse, joins and splits as in CUDACachingAllocator.cpp."""

from executor.check.allocator import Allocator

MIB = 2**20


def test_segments_by_size():
    """2 MiB for small ones, 20 below 10, their own size rounded to 2 above."""
    for size, held in ((512, 2), (MIB, 2), (MIB + 1, 20), (10 * MIB - 512, 20), (10 * MIB, 10), (21 * MIB, 22)):
        allocator = Allocator()
        allocator.allocate(size)
        assert allocator.reserved == held * MIB


def test_small_blocks_share_a_segment():
    allocator = Allocator()
    for _ in range(2 * 2048):
        allocator.allocate(1)
    assert allocator.reserved == 2 * MIB


def test_a_freed_block_serves_what_fits_and_never_what_is_larger():
    allocator = Allocator()
    allocator.release(allocator.allocate(30 * MIB))
    left = [allocator.allocate(12 * MIB), allocator.allocate(12 * MIB)]  # split, both from the 30
    assert allocator.reserved == 30 * MIB
    for one in left:
        allocator.release(one)
    allocator.allocate(30 * MIB)  # the three parts have joined
    assert allocator.reserved == 30 * MIB
    allocator.allocate(31 * MIB)
    assert allocator.reserved == (30 + 32) * MIB


def test_segments_that_grow_join_what_two_tensors_freed():
    for expandable, held in ((False, 30 + 30 + 60), (True, 60)):
        allocator = Allocator(expandable=expandable)
        for one in [allocator.allocate(30 * MIB), allocator.allocate(30 * MIB)]:
            allocator.release(one)
        allocator.allocate(60 * MIB)
        assert allocator.reserved == held * MIB


def test_nothing_is_lost_over_many_turns():
    allocator, live = Allocator(), []
    for turn in range(2000):
        live.append(allocator.allocate(1 + (turn * 7919) % (30 * MIB)))
        if len(live) > 20:
            allocator.release(live.pop((turn * 31) % len(live)))
    used = sum(block.size for block in live)
    assert used <= allocator.reserved < 3 * used


def test_what_is_made_between_steps_settles_in_blocks_that_the_next_step_misses():
    """Three tensors of a step come and go; a small one that stays is made before the first step, or after it."""
    held = []
    for early in (True, False):
        allocator = Allocator()
        states = [allocator.allocate(12 * MIB)] if early else []
        for _ in range(2):
            for one in [allocator.allocate(size * MIB) for size in (30, 40, 50)]:
                allocator.release(one)
            states = states or [allocator.allocate(12 * MIB)]
        held.append(allocator.reserved)
    assert held[0] == (12 + 120) * MIB
    assert held[1] == (120 + 50) * MIB  # the block of 30 lost 12 to it, so each takes the next larger one
