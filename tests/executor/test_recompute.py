"""Recompute policies: the gradients of none, and exactly the work that each says is done again."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, masking_utils

from cost_models.errors import InputError
from cost_models.layer.recompute import EXECUTED
from cost_models.token_layout import Layout
from executor.mmsp import attention, ring
from executor.mmsp.attention import MmSp
from executor.mmsp.exchange import Alone
from executor.mmsp.recompute import apply_recompute
from planner.search.space import SEARCHED

LAYERS, TOKENS = 3, 12


def _model(policies):
    attention.register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="mm_sp").double().train()
    apply_recompute(model.model.layers, policies)
    return model


class _Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self, runs):
        super().__init__()
        self.runs = runs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.runs["products"] += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def _step(model, monkeypatch):
    """Gradients, and how often the forward kernel, each MLP's activation and, backward, a matrix product ran."""
    runs = Counter()
    kernel_forward = ring.kernel.forward

    def counted(*args, **kwargs):
        runs["attention"] += 1
        return kernel_forward(*args, **kwargs)

    monkeypatch.setattr(ring.kernel, "forward", counted)
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_hook(lambda *_: runs.update(["mlp"]))
        layer.self_attn.q_proj.register_forward_hook(lambda *_: runs.update(["projection"]))
    call = MmSp(layout=Layout(tokens=TOKENS, documents=(0, 5)), ulysses=Alone(), ring=Alone())
    ids = torch.arange(TOKENS)[None] * 5 % 32
    positions = torch.cat((torch.arange(5), torch.arange(TOKENS - 5)))[None]
    out = model(input_ids=ids, position_ids=positions, use_cache=False, mm_sp=call).logits
    with _Products(runs):
        (out**2).mean().backward()
    monkeypatch.undo()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, runs


@pytest.mark.parametrize(
    ("policies", "again"),
    [
        (("none",) * 3, {"attention": 0, "mlp": 0, "projection": 0, "products": 0}),
        (("mlp",) * 3, {"attention": 0, "mlp": 3, "projection": 0, "products": 6}),
        (("all_but_attention",) * 3, {"attention": 0, "mlp": 3, "projection": 3, "products": 18}),
        (("full",) * 3, {"attention": 6, "mlp": 3, "projection": 3, "products": 18}),  # two documents: two kernels
        (("none", "all_but_attention", "mlp"), {"attention": 0, "mlp": 2, "projection": 1, "products": 8}),
    ],
)
def test_same_gradients_and_only_the_named_work_again(policies, again, monkeypatch):
    want, once = _step(_model(("none",) * LAYERS), monkeypatch)
    model = _model(policies)
    names = [name for name, _ in model.named_parameters()]
    got, runs = _step(model, monkeypatch)
    assert list(got) == names, "policies leave parameter names alone"
    for name in names:
        assert torch.equal(got[name], want[name]), name
    assert {what: runs[what] - once[what] for what in again} == again


def _saved_bytes(policy, tokens):
    """Bytes that autograd and the policy hold between forward and backward of one layer stack, inputs included."""
    model = _model((policy,) * LAYERS)
    call = MmSp(layout=Layout(tokens=tokens), ulysses=Alone(), ring=Alone())
    held: dict[int, tuple[int, object]] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    held[storage._cdata] = (storage.nbytes(), torch.multiprocessing.reductions.StorageWeakRef(storage))
            return out

    with Watch():
        out = model.model(inputs_embeds=torch.randn(1, tokens, 16).double(), use_cache=False, mm_sp=call)
    alive = sum(size for key, (size, reference) in held.items() if not reference.expired() and key not in parameters)
    del out
    return alive


def test_no_mask_is_made_and_nothing_read_for_one(monkeypatch):
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *_: pytest.fail("the device was read"))
    model = _model(("none",) * LAYERS)
    call = MmSp(layout=Layout(tokens=TOKENS, documents=(0, 5)), ulysses=Alone(), ring=Alone())
    positions = torch.cat((torch.arange(5), torch.arange(TOKENS - 5)))[None]
    ids = torch.arange(TOKENS)[None]
    packed = model(input_ids=ids, position_ids=positions, use_cache=False, mm_sp=call).logits[0, 5:]
    alone = MmSp(layout=Layout(tokens=TOKENS - 5), ulysses=Alone(), ring=Alone())
    got = model(input_ids=ids[:, 5:], use_cache=False, mm_sp=alone).logits[0]
    torch.testing.assert_close(packed, got, rtol=0, atol=1e-12)


def test_memory_kept_falls_from_policy_to_policy():
    """all_but_attention keeps (hidden + out + lse) where full keeps hidden: 16 + 16 + 4 numbers a token against 16."""
    tokens = 512
    kept = {policy: _saved_bytes(policy, tokens) for policy in EXECUTED}
    assert kept["none"] > kept["mlp"] > kept["all_but_attention"] > kept["full"]
    assert kept["all_but_attention"] - kept["full"] == LAYERS * tokens * (16 + 4) * 8


def test_wrong_policies_are_named():
    layers = _model(("none",) * LAYERS).model.layers
    with pytest.raises(InputError, match="names 2 layers, the model has 3"):
        apply_recompute(layers, ("full", "full"))
    with pytest.raises(InputError, match="'some' is not one of none, mlp, all_but_attention, full"):
        apply_recompute(layers, ("some",) * LAYERS)
    with pytest.raises(InputError, match="needs a Hugging Face decoder layer, not Linear"):
        apply_recompute([nn.Linear(1, 1)], ("full",))
    apply_recompute(layers, ("all_but_attention",) * LAYERS)
    model = LlamaForCausalLM._from_config(
        LlamaConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=8),
        attn_implementation="sdpa",
    ).train()
    apply_recompute(model.model.layers, ("all_but_attention",))
    with pytest.raises(InputError, match="use 'full' with any other"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False)


def test_the_planner_tries_what_the_executor_runs():
    assert set(SEARCHED) == set(EXECUTED)
