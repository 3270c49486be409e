"""The state-space layer against its matrix, documents, stretches, decoding; hybrid models written, read and refused."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from longvila import hybrid
from longvila.assemble import build_model
from longvila.config import load_config
from longvila.job import Job, JobError
from longvila.model import LongVilaForConditionalGeneration, NextTokens
from longvila.sharding import OneProcess
from longvila.ssd import DiscreteMamba2, _Gated, scan, scan_stretches
from longvila.weights import read_config, save_weights
from tests.longvila.test_model import batch_of

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def inputs(tokens, rows=2, heads=3, size=4, state=5):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(rows, tokens, heads, width) for width in (size, state, state)] + [(rows, tokens, heads)]
    x, b, c, a = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [one.requires_grad_() for one in (x, b, c, -torch.nn.functional.softplus(a))]


def token_by_token(x, b, c, log_decay, documents):
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], b.shape[3])
    made = []
    for i in range(x.shape[1]):
        if i and documents[i] != documents[i - 1]:
            state = torch.zeros_like(state)
        state = state * log_decay[:, i, :, None, None].exp() + x[:, i, ..., None] * b[:, i, :, None]
        made.append((state * c[:, i, :, None]).sum(-1))
    return torch.stack(made, 1), state


def layer(**changes):
    torch.manual_seed(0)
    made = DiscreteMamba2(12, heads=3, head_size=4, state=5, **changes).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def tiny(kind="llama"):
    config, model = MODELS[kind]
    torch.manual_seed(0)
    return model(config(**SIZES)).double()


SCANS = [(1, 4, 11), (7, 8, 11), (24, 8, 11), (29, 8, 11), (29, 1, 11), (16, 1, 20), (35, 1, 20), (300, 1, 280)]


@pytest.mark.parametrize(("tokens", "chunk", "document"), SCANS)
def test_a_scan_is_the_recurrence_with_its_gradients(tokens, chunk, document):
    """One to three levels of blocks of 16 chunks; documents end inside chunks, blocks and blocks of blocks."""
    leaves = inputs(tokens)
    documents = torch.arange(tokens) // document
    expected = token_by_token(*leaves, documents)
    got = scan(*leaves, documents=documents, chunk=chunk)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    grads = [torch.autograd.grad(y.square().sum() + state.sum(), leaves) for y, state in (got, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_state_goes_on_where_it_was_left():
    leaves = inputs(30)
    whole, end = scan(*leaves, chunk=8)
    first, state = scan(*(one[:, :13] for one in leaves), chunk=8)
    second, last = scan(*(one[:, 13:] for one in leaves), chunk=8, state=state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, end, rtol=0, atol=1e-12)


def test_stretches_know_of_each_other_through_the_carry_alone():
    """A row's stretches in another order: what the carry hands over is all that they see of one another."""
    leaves = inputs(20, rows=1)
    whole, end = scan(*leaves, chunk=4)
    order = [9, *range(10, 20), *range(9)]  # stretch 1 first
    entries = lambda own, decay: torch.stack((own[1], torch.zeros_like(own[0])))  # noqa: E731
    parts, ends = scan_stretches(
        *(one[:, order] for one in leaves), torch.zeros(1, 20, dtype=torch.bool),
        lengths=(11, 9), chunk=4, carry=entries,
    )  # fmt: skip
    torch.testing.assert_close(parts, whole[:, order], rtol=0, atol=1e-12)
    torch.testing.assert_close(ends[0], end, rtol=0, atol=1e-12)


def test_strong_decay_neither_overflows_nor_loses_the_near_tokens_in_float32():
    x, b, c, log_decay = (one.detach() for one in inputs(64))
    strong = log_decay * 40  # a chunk's decays sum to thousands
    expected, _ = token_by_token(x, b, c, strong, torch.zeros(64))
    got, state = scan(x.float(), b.float(), c.float(), strong.float(), chunk=64)
    assert got.isfinite().all() and state.isfinite().all()
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-3)


def test_the_gate_keeps_its_inputs_alone_and_its_gradients_are_those_of_autograd():
    kept = []
    for dtype in (torch.float64, torch.bfloat16):
        y, rest, bias, grad = (torch.randn(sizes, dtype=dtype) for sizes in ((2, 9, 6), (2, 9, 8), (6,), (2, 9, 6)))
        leaves = [one.requires_grad_() for one in (y, rest, bias)]
        found = []
        for gate in (lambda y, z, bias: y * F.silu(z + bias), _Gated.apply):
            with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
                out = gate(y, rest.split((6, 2), -1)[0], bias)
            found.append((out, *torch.autograd.grad(out, leaves, grad)))
        assert all(map(torch.equal, *found))
        assert {one.untyped_storage().data_ptr() for one in kept[-3:]} == {one.data_ptr() for one in leaves}
    out = _Gated.apply(y.detach(), rest.detach()[..., :6].requires_grad_(), bias.detach())
    out.backward(grad)  # a bias that does not learn


@pytest.mark.parametrize("documents", [[23], [9, 1, 13]])
def test_a_layer_is_its_matrix(documents):
    """out = out_proj((matrix x) silu(z + b)), with x after the convolution; no token sees another document."""
    made, positions = layer(chunk=8), torch.cat([torch.arange(n) for n in documents])
    hidden = torch.randn(2, 23, 12, dtype=torch.float64, requires_grad=True)
    matrix = made.matrix(hidden, positions[None])
    inner, z = made._inner(hidden)
    x = torch.zeros_like(inner.channels_BSHW[..., :4])
    for i, back in itertools.product(range(23), range(4)):
        if back <= positions[i]:
            x[:, i] = x[:, i] + inner.channels_BSHW[:, i - back, :, :4] * inner.taps_HWK[:, :4, 3 - back]
    y = torch.einsum("bhij,bjhp->bihp", matrix, x).flatten(2)
    expected = made.out_proj(y * torch.nn.functional.silu(z + made.z_bias))
    got, _ = made(hidden, position_ids=positions[None])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    wanted = (hidden, *made.parameters())
    grads = [torch.autograd.grad(one.square().mean(), wanted, retain_graph=True) for one in (got, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    document = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents))
    assert matrix[..., (document[:, None] != document) | torch.ones(23, 23).triu(1).bool()].eq(0).all()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("keep", [{1}, {0, 2}, set()])
def test_tokens_one_by_one_are_the_whole(kind, keep):
    model = tiny(kind)
    hybrid.convert(model, keep)
    assert hybrid.layer_types(model) == ["full_attention" if i in keep else "ssd" for i in range(3)]
    ids = torch.randint(3, 64, (2, 11))
    whole = model(ids, use_cache=False).logits
    parts, cache = [], None
    for piece in ids.split([5, 1, 1, 2, 2], 1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)
    assert cache.get_seq_length() == 11
    greedy = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for i in range(11, 15):
        assert torch.equal(greedy[:, i], model(greedy[:, :i], use_cache=False).logits[:, -1].argmax(-1))


@pytest.mark.parametrize("kind", MODELS)
def test_a_converted_layer_starts_from_the_attention(kind):
    """The same y = (C B^T causal) x, when nothing decays, as attention's scores without their softmax."""
    model = tiny(kind)
    attention = model.model.layers[1].self_attn
    hidden = torch.randn(1, 9, 32, dtype=torch.float64)
    q, k, v = (
        (hidden @ one.weight.T).unflatten(-1, (-1, 8)).transpose(1, 2)
        for one in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    k, v = (one.repeat_interleave(2, 1) for one in (k, v))
    hybrid.convert(model, {0, 2})
    made = model.model.layers[1].self_attn
    near = made.matrix(hidden) * 2.0 ** (torch.arange(9)[:, None] - torch.arange(9))  # softplus(0) is log 2
    scores = (q @ k.transpose(-1, -2)).tril() * 8**-0.5
    torch.testing.assert_close(near, scores, rtol=0, atol=1e-10)
    expected = (made.matrix(hidden) @ v).transpose(1, 2).flatten(2) @ attention.o_proj.weight.T
    torch.testing.assert_close(made(hidden)[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", MODELS)
def test_a_hybrid_folder_is_read_back(kind, tmp_path):
    model = tiny(kind)
    hybrid.convert(model, {0}, hybrid.SsdShape(heads=2, head_size=8, state=4, chunk=4))
    for parameter in model.parameters():
        parameter.data *= 1 + 1e-12  # no float32 holds it
    hybrid.save(model, tmp_path / "hybrid")
    config = json.loads((tmp_path / "hybrid" / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "ssd", "ssd"]
    assert config["ssd"] == {"heads": 2, "head_size": 8, "state": 4, "conv": 4, "chunk": 4}
    again = hybrid.load(tmp_path / "hybrid")
    ids = torch.randint(3, 64, (1, 9))
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-15)
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    assert {one.dtype for one in hybrid.load(tmp_path / "hybrid", dtype=torch.bfloat16).buffers()} == {torch.float32}
    with pytest.raises(JobError, match="exists already"):
        hybrid.save(model, tmp_path / "hybrid")


def test_a_folder_without_ssd_is_read_too(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "plain")
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}  # Llama-2's folders have them
    weights = tmp_path / "plain" / "model.safetensors"
    save_file(load_file(weights) | frequencies, weights)
    again = hybrid.load(tmp_path / "plain")
    ids = torch.randint(3, 64, (1, 9))
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-15)


def test_a_longvila_with_ssd_layers_is_written_read_and_answers(tmp_path):
    given = load_config("tiny")
    ssd = {"heads": 4, "head_size": 16, "state": 8}
    llm = {**given.llm, "layer_types": ["ssd", "full_attention", "ssd", "ssd"], "ssd": ssd}
    torch.manual_seed(0)
    model = LongVilaForConditionalGeneration(replace(given, llm=llm))
    save_weights(model, tmp_path / "weights", OneProcess())
    config = read_config(tmp_path / "weights")
    assert hybrid.shape_of(config.llm) == hybrid.SsdShape(**ssd)
    folder = str(tmp_path / "weights")
    again = build_model(config, Job(), dtype=torch.float32, seed=1, weights=folder, trained=())
    assert torch.equal(again(batch_of()), model(batch_of()))
    cache, prompt, longer = OneProcess().cache(), batch_of((31,)), batch_of((32,))
    ids = torch.cat((prompt.input_ids_L, torch.tensor([7])))
    longer = replace(longer, input_ids_L=ids, pixels_FCHW=prompt.pixels_FCHW)
    with torch.no_grad():
        model(prompt, cache=cache)
        decoded = model(NextTokens(tokens=(7,), positions=(31,)), cache=[cache])
        torch.testing.assert_close(decoded[0], model(longer, cache=OneProcess().cache()), rtol=0, atol=1e-5)


REFUSED = [
    ({"layer_types": ["ssd", "full_attention", "full_attention"]}, "ssd does not give heads"),
    ({"ssd": {"heads": 2, "head_size": 8, "state": 4}}, "no layer of layer_types is ssd"),
    ({"layer_types": ["ssd", "conv", "ssd"], "ssd": {}}, "layer_types conv are not run; legal: full_attention"),
    ({"layer_types": ["ssd"] * 3, "ssd": {"heads": 2, "head_size": 8}}, "missing setting 'state'"),
    ({"layer_types": ["ssd"] * 3, "ssd": {"heads": 2, "head_size": 8, "states": 4}}, "did you mean 'state'"),
    ({"layer_types": ["ssd"] * 3, "ssd": {"heads": 0, "head_size": 8, "state": 4}}, "heads 0 must be at least 1"),
    ({"layer_types": ["ssd"] * 2, "ssd": {"heads": 2, "head_size": 8, "state": 4}}, "not usable.*num_hidden_layers"),
    ({"layer_types": ["ssd"] * 3, "ssd": {"heads": 2, "head_size": 8, "state": 4}}, "no model.layers.0.self_attn"),
    ({"quantization_config": {"quant_method": "fp8"}}, "holds quantised weights"),
    ({"model_type": "gpt2", "layer_types": ["ssd"] * 3, "ssd": {}}, "model_type 'gpt2'; legal: llama, qwen2"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_is_no_hybrid_is_refused(change, message, tmp_path):
    tiny().save_pretrained(tmp_path / "plain")
    path = tmp_path / "plain" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(JobError, match=message):
        hybrid.load(tmp_path / "plain")


def test_a_layer_that_there_is_not_is_not_kept():
    with pytest.raises(JobError, match="layer 3 is not one of the 3 layers, 0 to 2"):
        hybrid.convert(tiny(), {0, 3})
