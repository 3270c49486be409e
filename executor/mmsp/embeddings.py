"""The two-stage split of vision: who encodes which frame, and the way of its embeddings to the tokens' owners.

    F frames on N ranks: rank i encodes [F*i//N, F*(i+1)//N)         counts of frames differ by at most one
    encoder i --its embeddings, in row order--> owner j of the token   one all-to-all-v, gradients go back the same way

Memory O(V / N) embeddings a rank, never all of the row; a rank sends at most (embeddings it made) * D * b bytes. Counts
follow from integers that every rank knows, so nothing is negotiated. Ranks with no frames, or no vision tokens, join
with empty buffers. Leaves out: frames with unequal numbers of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cost_models.errors import InputError
from cost_models.token_layout import Layout, Places
from executor.mmsp.exchange import Exchange, all_to_all
from longvila.sharding import places_on


def own_frames(frames: int, members: int, index: int) -> range:
    """The frames that member `index` encodes.

    >>> [len(own_frames(5, 4, index)) for index in range(4)]
    [1, 1, 1, 2]
    """
    return range(frames * index // members, frames * (index + 1) // members)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One rank's part of the exchange: embeddings to send in `order`, and how many go to and come from each member."""

    order: Places  # the rank's embeddings (row order) sorted by receiver
    send: tuple[int, ...]
    receive: tuple[int, ...]


def vision_of(positions: Places, vision_at: Places) -> tuple[np.ndarray, Places]:
    """Which places in the row are vision tokens (a mask), and the numbers of those vision tokens."""
    number = np.searchsorted(vision_at, positions)
    is_vision = number < len(vision_at)
    is_vision[is_vision] = vision_at[number[is_vision]] == positions[is_vision]
    return is_vision, number[is_vision]


def route(*, vision_at: Places, frames: int, layout: Layout, places: tuple[tuple[int, int], ...], index: int) -> Route:
    """The route of context member `index`; `places` are the members' (ring, ulysses) indices in member order."""
    members = len(places)
    if (frames == 0) != (len(vision_at) == 0) or (frames and len(vision_at) % frames):
        raise InputError(f"{len(vision_at)} vision tokens cannot be {frames} frames of equal length")
    per_frame = len(vision_at) // frames if frames else 0
    first_frames = [own_frames(frames, members, member).start for member in range(members)]
    encoded = own_frames(frames, members, index)

    member_at = np.empty(members, dtype=np.int64)
    for member, (ring_index, ulysses_index) in enumerate(places):
        member_at[ring_index * layout.ulysses + ulysses_index] = member
    owner = member_at[layout.owner(vision_at[encoded.start * per_frame : encoded.stop * per_frame])]

    _, mine = vision_of(layout.index(*places[index]), vision_at)
    encoder = np.searchsorted(first_frames, mine // max(per_frame, 1), side="right") - 1
    return Route(
        order=np.argsort(owner, kind="stable"),
        send=tuple(np.bincount(owner, minlength=members).tolist()),
        receive=tuple(np.bincount(encoder, minlength=members).tolist()),
    )


def exchange_embeddings(made_ND: Tensor, way: Route, context: Exchange) -> Tensor:
    """The embeddings that this rank made -> those of its vision tokens in local order.

    Encoders hold ascending ranges of frames and local order ascends in the row, so what arrives is already in order.
    """
    if made_ND.shape[0] != len(way.order):
        raise InputError(f"this rank encoded {made_ND.shape[0]} embeddings, but its frames have {len(way.order)}")
    ordered = made_ND
    if len(way.send) > 1:
        ordered = made_ND[places_on(torch.from_numpy(way.order), made_ND.device)]
    return all_to_all(ordered, context, way.send, way.receive)
