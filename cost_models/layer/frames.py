"""How many of a row's frames the busiest rank encodes, by how the frames reach their ranks.

    exchanged     two stages: frames dealt evenly, embeddings sent on to the ranks that hold their tokens
    reduced       two stages: dealt evenly, all embeddings rebuilt on every rank by an all-reduce (LongVILA's code)
    own_tokens    one stage: tokens are dealt first, and a rank encodes every frame that it has a token of
    placeholders  one stage: frames are dealt before they are tokens, each counting as much as one text token

Dealt evenly: ceil(frames / context). By tokens: a frame that spans two ranks is encoded twice, and ranks that hold
text encode fewer. By placeholder: ceil((frames + text) / context), as if text came last. Left out: frames that lie
between text (the video is taken to start the row), and the uneven tokens that placeholders leave to the language model.
"""

from __future__ import annotations

from typing import Literal

from cost_models.token_layout import row_granule

FrameSharding = Literal["exchanged", "reduced", "own_tokens", "placeholders"]


def busiest(sharding: FrameSharding, frames: int, tokens_per_frame: int, text: int, ring: int, ulysses: int) -> int:
    """The most frames that one rank of ring x ulysses encodes.

    >>> busiest("exchanged", 257, 196, 0, 1, 8), busiest("placeholders", 256, 196, 104, 1, 8)
    (33, 45)
    >>> busiest("own_tokens", 256, 196, 0, 1, 8), busiest("own_tokens", 260, 196, 0, 1, 8)
    (32, 33)
    """
    context = ring * ulysses
    if sharding == "placeholders":
        return min(frames, -(-(frames + text) // context))
    if sharding != "own_tokens" or context == 1:
        return -(-frames // context)
    spans = _zigzag_spans(frames * tokens_per_frame + text, ring, ulysses)
    return max(_touched(mine, frames, tokens_per_frame) for mine in spans)


def _zigzag_spans(tokens: int, ring: int, ulysses: int) -> list[list[tuple[int, int]]]:
    """Runs of the row that each rank holds: chunks r and 2 R - 1 - r joined, then cut for the ulysses ranks."""
    granule = int(row_granule(ring, ulysses))
    block = -(-tokens // granule) * granule // ring
    chunk, part = block // min(ring, 2), block // ulysses
    spans = []
    for r in range(ring):
        starts = (r * chunk, (2 * ring - 1 - r) * chunk)
        for u in range(ulysses):
            low, high = u * part, (u + 1) * part
            first = (starts[0] + min(low, chunk), starts[0] + min(high, chunk))
            second = (starts[1] + max(low - chunk, 0), starts[1] + max(high - chunk, 0))
            spans.append([span for span in (first, second) if span[0] < span[1]])
    return spans


def _touched(spans: list[tuple[int, int]], frames: int, tokens_per_frame: int) -> int:
    """Frames with a token in any of the spans, which are in order."""
    count, last = 0, -1
    for low, high in spans:
        first = max(low // tokens_per_frame, last + 1)
        final = min((high - 1) // tokens_per_frame, frames - 1)
        count, last = count + max(final - first + 1, 0), max(last, final)
    return count
