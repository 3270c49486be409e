"""State-space layers of many ranks (threads of one process) equal one process, forward and gradients, in float64."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cost_models.errors import InputError
from cost_models.ssd_messages import SsdLayer, rounds
from cost_models.token_layout import RING_LAYOUTS, Layout
from executor.mmsp.ssd import SsdSplit
from longvila.ssd import DiscreteMamba2
from tests.executor.threads import local_exchanges

HEADS, SIZE, STATE, HIDDEN = 8, 3, 2, 5
WAYS = [("states", "gather"), ("states", "chain"), ("states", "tree")]
WAYS += [("mixed", "gather"), ("mixed", "tree"), ("heads", "gather")]
DOCUMENTS = ([37], [5, 1, 17, 12, 2])


def layer(conv=4):
    torch.manual_seed(0)
    made = DiscreteMamba2(HIDDEN, HEADS, SIZE, STATE, conv=conv, chunk=4).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def row(tokens, batch=1):
    generator = torch.Generator().manual_seed(tokens)
    return (torch.randn((batch, tokens, HIDDEN), generator=generator, dtype=torch.float64) for _ in range(2))


def positions_of(documents):
    return torch.cat([torch.arange(length) for length in documents])[None]


def whole(made, hidden, dout, documents):
    hidden = hidden.clone().requires_grad_()
    out, _ = made(hidden, position_ids=positions_of(documents))
    return out.detach(), *torch.autograd.grad((out * dout).sum(), (hidden, *made.parameters()))


def on_threads(layout, work, wrap=lambda name, one, place: one):
    """work(exchanges by name, place) on every rank of the layout; results by place."""
    places = [(ring, ulysses) for ring in range(layout.ring) for ulysses in range(layout.ulysses)]
    context = local_exchanges(len(places))
    ulysses = [local_exchanges(layout.ulysses) for _ in range(layout.ring)]
    rings = [local_exchanges(layout.ring) for _ in range(layout.ulysses)]
    with ThreadPoolExecutor(len(places)) as pool:
        futures = []
        for member, (r, u) in enumerate(places):
            groups = {"context": context[member], "ulysses": ulysses[r][u], "ring": rings[u][r]}
            futures.append(pool.submit(work, {name: wrap(name, one, (r, u)) for name, one in groups.items()}, (r, u)))
        return [future.result(60) for future in futures], tuple(places)


def sharded(made, layout, hidden, dout, split, way, wrap=lambda name, one, place: one, pieces=1):
    """Output, gradient of the input in the row's order, and gradients of the weights summed over ranks."""
    places = tuple((ring, ulysses) for ring in range(layout.ring) for ulysses in range(layout.ulysses))
    padding = layout.padded_tokens - layout.tokens
    padded, dpadded = (
        torch.cat((x, x.new_full((len(x), padding, HIDDEN), fill)), 1) for x, fill in ((hidden, 7), (dout, 0))
    )

    def work(groups, place):
        index = torch.from_numpy(layout.index(*place))
        ssd = SsdSplit(layout=layout, places=places, split=split, way=way, pieces=pieces, **groups)
        mine = padded[:, index].requires_grad_()
        out, _ = made(mine, ssd=ssd)
        grads = torch.autograd.grad((out * dpadded[:, index]).sum(), (mine, *made.parameters()))
        return index, out.detach(), *grads

    results, _ = on_threads(layout, work, wrap)
    order = torch.cat([one[0] for one in results]).argsort()[: layout.tokens]
    by_token = [torch.cat([one[part] for one in results], 1)[:, order] for part in (1, 2)]
    return *by_token, *(sum(parts) for parts in zip(*(one[3:] for one in results), strict=True))


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_every_layout_to_eight_ranks_equals_one_process():
    made = layer()
    hidden, dout = row(37)
    want = [whole(made, hidden, dout, documents) for documents in DOCUMENTS]
    compared = 0
    for ulysses, ring in [(u, r) for u in range(1, 9) for r in range(1, 8 // u + 1)]:
        for number, (split, way) in enumerate(WAYS):
            if HEADS % {"states": 1, "mixed": ulysses, "heads": ulysses * ring}[split]:
                continue
            case = (ulysses + number) % 2
            kind = "contiguous" if way == "chain" else RING_LAYOUTS[(ulysses + ring + number) % 3]
            layout = layout_of(ulysses, ring, kind, DOCUMENTS[case])
            pieces = 1 + (ulysses + ring + number) % 4  # some divide a rank's heads, some do not, some are more
            assert_same(sharded(made, layout, hidden, dout, split, way, pieces=pieces), want[case])
            compared += 1
    assert compared == 100


def layout_of(ulysses, ring, kind, documents):
    starts = tuple(torch.tensor([0, *documents]).cumsum(0)[:-1].tolist())
    return Layout(tokens=sum(documents), ulysses=ulysses, ring=ring, kind=kind, documents=starts)


REFUSED = [
    (("heads", "gather"), "ssd=heads deals 8 heads to 6 ranks; the ranks must divide the heads"),
    (("mixed", "chain"), "chain needs one stretch of the row on each rank, here are up to 2; take ring_layout contig"),
    (("state", "gather"), "ssd=state is not one of states, mixed, heads"),
    (("mixed", "ring"), "ssd_pass=ring is not one of gather, chain, tree"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_cannot_be_split_so_is_refused(words, message):
    hidden, dout = row(24)
    with pytest.raises(InputError, match=message):
        sharded(layer(), layout_of(2, 3, "zigzag", [24]), hidden, dout, *words)


@pytest.mark.parametrize("conv", [1, 2, 7])
def test_a_convolution_reaches_over_several_short_stretches(conv):
    """Five tokens on four ranks: with seven taps a stretch needs tokens of all before it, its own rank's too."""
    made = layer(conv)
    hidden, dout = row(5)
    for kind in ("zigzag", "contiguous"):
        got = sharded(made, layout_of(1, 4, kind, [5]), hidden, dout, "states", "tree")
        assert_same(got, whole(made, hidden, dout, [5]))


class Counting:
    """An exchange that writes down what this rank sends to others, in bytes."""

    def __init__(self, inner, members, sent):
        self._inner, self.size, self.index, self._members, self._sent = inner, inner.size, inner.index, members, sent

    def _count(self, member, buffer):
        if member != self.index:
            self._sent[self._members[self.index], self._members[member]] += buffer.nbytes

    def all_to_all(self, rows, send, receive):
        for member, part in enumerate(rows.split(list(send))):
            self._count(member, part)
        return self._inner.all_to_all(rows, send, receive)

    def start_transfer(self, send, receive):
        for member, buffer in send:
            self._count(member, buffer)
        return self._inner.start_transfer(send, receive)

    def all_gather(self, buffer):
        for member in range(self.size):
            self._count(member, buffer)
        return self._inner.all_gather(buffer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("ulysses", "ring", "kind"), [(1, 4, "zigzag"), (2, 2, "zigzag"), (2, 2, "contiguous")])
def test_bytes_from_each_rank_to_each_are_the_cost_models(ulysses, ring, kind, way):
    kind = "contiguous" if way[1] == "chain" else kind
    layout, sent, made = layout_of(ulysses, ring, kind, [37]), torch.zeros(4, 4), layer()
    hidden, dout = row(37)
    grid = torch.arange(4).reshape(ring, ulysses)
    lists = {"context": [grid.flatten()], "ulysses": [*grid], "ring": [*grid.T]}

    def counted(name, one, place):
        rank = int(grid[place])
        members = next(ranks for ranks in lists[name] if rank in ranks.tolist())
        return Counting(one, members.tolist(), sent)

    sharded(made, layout, hidden, dout, *way, counted, pieces=2)
    sizes = SsdLayer(heads=HEADS, head_size=SIZE, state=STATE, width=8, state_width=8)
    forward = sum(one.bytes for one in rounds(layout, sizes, *way))
    assert sent.tolist() == (forward + forward.T).tolist()
