"""The loss with its own gradients against torch's, and the digits that its weight gradient keeps over many chunks."""

import pytest
import torch
from torch.nn import functional as F

from longvila.loss import loss_sum
from longvila.sharding import IGNORE

TOKENS, WIDTH, VOCABULARY = 50, 16, 40


def inputs(tokens=TOKENS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    labels[::3] = IGNORE
    labels[20:32] = IGNORE  # whole chunks without a label
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def torch_loss(hidden, weight, labels):
    return F.cross_entropy(F.linear(hidden, weight), labels, ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 7, 25, 50, 4096])
def test_loss_and_gradients_equal_torch(chunk):
    hidden, weight, labels = inputs()
    expected = torch_loss(hidden, weight, labels)
    wanted = torch.autograd.grad(expected / 34, (hidden, weight))
    loss = loss_sum(hidden, weight, labels, chunk)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for got, want in zip(torch.autograd.grad(loss / 34, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_no_labels_give_zero():
    hidden, weight, labels = inputs()
    loss = loss_sum(hidden, weight, torch.full_like(labels, IGNORE), 7)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (hidden, weight)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("chunks", [1, 64, 256])
def test_half_precision_keeps_its_digits_over_many_chunks(chunks):
    """One rounding to bfloat16 is at most 2^-9 = 0.2% of each number, however many chunks were added."""
    hidden, weight, labels = inputs(tokens=1024, dtype=torch.bfloat16)
    exact = torch.autograd.grad(torch_loss(hidden.double(), weight.double(), labels), weight)[0].double()
    loss = loss_sum(hidden, weight, labels, 1024 // chunks)
    assert loss.dtype == torch.float32
    got = torch.autograd.grad(loss, weight)[0]
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).norm() / exact.norm()).item() < 2**-8


def test_a_frozen_head_and_no_gradients():
    hidden, weight, labels = inputs()
    weight.requires_grad_(False)
    (got,) = torch.autograd.grad(loss_sum(hidden, weight, labels, 7), hidden)
    (want,) = torch.autograd.grad(torch_loss(hidden, weight, labels), hidden)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert loss_sum(hidden.detach(), weight, labels, 7).grad_fn is None
    weight.requires_grad_(True)
    (got,) = torch.autograd.grad(loss_sum(hidden.detach(), weight, labels, 7), weight)
    (want,) = torch.autograd.grad(torch_loss(hidden, weight, labels), weight)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_nothing_is_made_for_a_backward_pass_that_cannot_come(monkeypatch):
    hidden, weight, labels = inputs()
    monkeypatch.setattr("longvila.loss._add_product", lambda *_: pytest.fail("a weight gradient without gradients"))
    with torch.no_grad():
        loss = loss_sum(hidden, weight, labels, 7)
    torch.testing.assert_close(loss, torch_loss(hidden, weight, labels).detach(), rtol=1e-13, atol=0)


def test_logits_are_computed_once(monkeypatch):
    """Three products a chunk: logits, dh, dW; and a second backward pass is refused."""
    counted = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            counted.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    hidden, weight, labels = inputs()
    with Count():
        loss = loss_sum(hidden, weight, labels, 10)
        loss.backward(retain_graph=True)
    assert sum(name in ("mm", "addmm_") for name in counted) == 3 * 5
    with pytest.raises(RuntimeError, match="differentiated already"):
        loss.backward()


def test_the_softmax_of_half_precision_logits_is_in_float32():
    """In bfloat16 each token's logarithm would be off by up to 2^-9 of its size."""
    hidden, weight, labels = inputs(dtype=torch.bfloat16)
    with torch.no_grad():
        logits = hidden @ weight.T  # rounded to bfloat16, as in the loss
        exact = F.cross_entropy(logits.double(), labels, ignore_index=IGNORE, reduction="sum")
        assert loss_sum(hidden, weight, labels, TOKENS).item() == pytest.approx(exact.item(), rel=1e-6)
