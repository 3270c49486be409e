"""The model against plain Hugging Face calls, in float64: loss, gradients, packing, frames, the released projector."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from longvila.assemble import build_model
from longvila.config import LongVilaConfig, load_config, presets
from longvila.job import Job, JobError
from longvila.model import LongVilaForConditionalGeneration, NextTokens
from longvila.sharding import IGNORE, Batch, OneProcess
from longvila.weights import empty_model, materialise


def model_of(seed=0, **changes):
    config = dataclasses.replace(load_config("tiny"), **changes)
    torch.manual_seed(seed)
    return LongVilaForConditionalGeneration(config).double()


def batch_of(lengths=(40,), frames=2, seed=1, width=48):
    """Packed documents; the first begins with the vision tokens."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    labels = torch.randint(0, 256, (total,), generator=generator)
    labels[::3] = IGNORE
    return Batch(
        input_ids_L=torch.randint(0, 256, (total,), generator=generator),
        labels_L=labels,
        positions_L=torch.cat([torch.arange(n) for n in lengths]),
        document_L=torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]),
        vision_at_V=torch.arange(9 * frames),
        frames=frames,
        pixels_FCHW=torch.randn(frames, 3, width, width, generator=generator, dtype=torch.float64),
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def plain_loss(model, batch):
    """The same from Hugging Face's own logits, all of them at once."""
    patches = model.tower(pixel_values=batch.pixels_FCHW, output_hidden_states=True)
    vision = model.projector(patches.hidden_states[-1]).flatten(0, 1)
    inputs = model.llm.get_input_embeddings()(batch.input_ids_L).clone()
    inputs[batch.vision_at_V] = vision
    logits = model.llm(inputs_embeds=inputs[None], use_cache=False).logits[0]
    return F.cross_entropy(logits, batch.labels_L, ignore_index=IGNORE, reduction="sum")


def test_loss_and_every_gradient_equal_plain_hugging_face():
    model, batch = model_of(loss_chunk_tokens=7), batch_of()
    expected = plain_loss(model, batch)
    loss = model(batch)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    wanted, got = gradients(model, expected), gradients(model, loss)
    assert all(torch.any(g != 0) for name, g in got.items() if "k_proj.bias" not in name)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


class _Narrowed(TorchDispatchMode):
    """Operations that make float32 of float64."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [one.dtype for one in args if isinstance(one, torch.Tensor)]
        if torch.float64 in given and isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.names.append(str(func))
        return out


def test_a_float64_step_computes_in_float64_throughout():
    """Two ways of splitting a run are compared in float64: a norm in float32 would tell them apart by itself."""
    model = build_model(load_config("tiny"), Job(), dtype=torch.float64, seed=0, weights=None, trained=("llm",))
    with _Narrowed() as narrowed:
        model(batch_of()).backward()
    assert narrowed.names == []
    norm, hidden = model.llm.model.norm, torch.randn(3, model.llm.config.hidden_size, dtype=torch.float64)
    torch.testing.assert_close(
        norm(hidden), F.rms_norm(hidden, hidden.shape[1:], norm.weight, norm.variance_epsilon), rtol=1e-14, atol=0
    )


def test_tied_embeddings_get_both_gradients():
    batch = batch_of()
    model = model_of(llm={**load_config("tiny").llm, "tie_word_embeddings": True}, loss_chunk_tokens=7)
    assert model.llm.lm_head.weight is model.llm.get_input_embeddings().weight
    wanted, got = gradients(model, plain_loss(model, batch)), gradients(model, model(batch))
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("chunk", [1, 16, 39, 4096])
def test_chunked_loss_has_the_gradients_of_the_whole(chunk):
    batch = batch_of()
    whole, chunked = model_of(loss_chunk_tokens=40), model_of(loss_chunk_tokens=chunk)
    wanted, got = gradients(whole, whole(batch)), gradients(chunked, chunked(batch))
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-10, atol=1e-13, msg=name)


def test_packed_documents_do_not_see_each_other():
    model, packed = model_of(), batch_of(lengths=(40, 25, 1, 30))
    alone, start = 0.0, 0
    for number, length in enumerate((40, 25, 1, 30)):
        part = slice(start, start + length)
        document = dataclasses.replace(
            packed,
            input_ids_L=packed.input_ids_L[part],
            labels_L=packed.labels_L[part],
            positions_L=packed.positions_L[part],
            document_L=packed.document_L[part],
            vision_at_V=packed.vision_at_V if number == 0 else packed.vision_at_V[:0],
            pixels_FCHW=packed.pixels_FCHW if number == 0 else packed.pixels_FCHW[:0],
        )
        alone = alone + model(document)
        start += length
    together = model(packed)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    unpacked = model(dataclasses.replace(packed, positions_L=torch.arange(96)))
    assert abs((unpacked - together).item()) > 1e-3  # the comparison can fail
    wanted, got = gradients(model, alone), gradients(model, together)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_frames_in_chunks_equal_frames_at_once(size):
    batch = batch_of(lengths=(80,), frames=5)
    whole, chunked = model_of(), model_of(frames_per_chunk=size)
    wanted, got = gradients(whole, whole(batch)), gradients(chunked, chunked(batch))
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slower(OneProcess):
    """Another process has more frames, so that this one calls the tower more often than it needs to."""

    def most_own_frames(self, frames):
        return frames + 4


def test_extra_calls_of_the_tower_change_nothing():
    batch, model = batch_of(lengths=(80,), frames=5), model_of(frames_per_chunk=2)
    wanted, got = gradients(model, model(batch)), gradients(model, model(batch, Slower()))
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-12, atol=1e-15, msg=name)


def test_text_alone_gives_the_tower_a_gradient_of_exactly_zero():
    model, batch = model_of(), batch_of(frames=0)
    got = gradients(model, model(batch))
    for name, gradient in got.items():
        if name.startswith(("tower", "projector")):
            assert torch.equal(gradient, torch.zeros_like(gradient)), name
    torch.testing.assert_close(model(batch), plain_text_loss(model, batch), rtol=1e-12, atol=0)


def test_many_large_embeddings_stay_finite_in_half_precision():
    """60 x 9 x D embeddings near 3 add up to more than float16 holds; nothing may need their sum."""
    model = model_of()
    torch.nn.init.constant_(model.projector.layers[-1].bias, 3.0)
    batch = batch_of(lengths=(600,), frames=60)
    half = dataclasses.replace(batch, pixels_FCHW=batch.pixels_FCHW.half())
    with torch.no_grad():
        wanted, got = model(batch), model.half()(half)
        assert model.encode_frames(half.pixels_FCHW, 60).float().sum() > torch.finfo(torch.float16).max
    torch.testing.assert_close(got.double(), wanted, rtol=0.01, atol=0)


def plain_text_loss(model, batch):
    logits = model.llm(input_ids=batch.input_ids_L[None], use_cache=False).logits[0]
    return F.cross_entropy(logits, batch.labels_L, ignore_index=IGNORE, reduction="sum")


def test_a_step_runs_on_fake_tensors():
    """No shape depends on data, so memory can be counted at full size without the memory."""
    model = empty_model(dataclasses.replace(load_config("tiny"), frames_per_chunk=3), "sdpa")
    with FakeTensorMode(allow_non_fake_inputs=True):
        materialise(model, torch.device("cpu"))
        batch = batch_of(lengths=(500,), frames=8)
        pixels = torch.empty(batch.pixels_FCHW.shape)
        model(dataclasses.replace(batch, pixels_FCHW=pixels)).backward()
    assert {type(p.grad).__name__ for p in model.parameters()} == {"FakeTensor"}


def test_decoding_with_a_cache_equals_running_the_whole_row():
    model, batch = model_of().eval(), batch_of()
    with torch.inference_mode():
        cache = OneProcess().cache()
        logits = model(batch, cache=cache)
        ids, positions = batch.input_ids_L, batch.positions_L
        for step in range(5):
            again = dataclasses.replace(batch, input_ids_L=ids, labels_L=ids, positions_L=positions)
            whole = model(again, cache=OneProcess().cache())
            torch.testing.assert_close(logits, whole, rtol=1e-10, atol=1e-12)
            token = int(logits.argmax())
            (logits,) = model(NextTokens(tokens=(token,), positions=(40 + step,)), cache=[cache])
            ids, positions = torch.cat([ids, torch.tensor([token])]), torch.arange(41 + step)


@pytest.mark.parametrize(
    ("name", "billions"), [("longvila-8b", 8.030), ("longvila-7b", 7.616), ("longvila-1.5b", 1.544)]
)
def test_presets_have_the_published_shapes(name, billions):
    """196 tokens per frame; parameters of Llama-3-8B, Qwen2-7B and Qwen2-1.5B as their model cards count them."""
    config = load_config(name)
    with torch.device("meta"):
        model = LongVilaForConditionalGeneration(config)
    assert config.tokens_per_frame == 196
    assert sum(p.numel() for p in model.llm.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    # the selected output is that of layer 26 of 27, so that the last is not built
    assert len(model.tower.encoder.layers) == 26
    assert len(model.layers()) == 26 + config.llm["num_hidden_layers"]


def test_wrong_models_are_refused_with_the_legal_values():
    with pytest.raises(JobError, match=r"neither a preset \(.*tiny.*\) nor a YAML file"):
        load_config("longvila-9b")
    with pytest.raises(JobError, match="vision_select_layer -9 is not within -2 … -1"):
        dataclasses.replace(load_config("tiny"), vision_select_layer=-9)
    with pytest.raises(JobError, match="model_type"):
        LongVilaConfig(llm={}, vision={})
    assert "tiny" in presets()


def test_rope_theta_reaches_the_rotary_frequencies():
    slow = load_config("tiny", rope_theta=3580165449.0)
    model = LongVilaForConditionalGeneration(slow)
    head = 128 // 8
    expected = 3580165449.0 ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    torch.testing.assert_close(model.llm.model.rotary_emb.inv_freq.double(), expected, rtol=1e-5, atol=0)
