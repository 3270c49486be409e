"""LongVILA: frames and text in, the summed token loss or the next token's logits out, over any sharding.

    frames of this rank -> tower (SigLIP) -> projector (2x2 downsample, MLP) --exchange_embeddings--> its vision tokens
    tokens of this rank -> embedding table ------------------------------------------------\\-> LLM -> head -> loss sum

`model(batch, sharding)` gives the local loss SUM (float32; float64 for float64 models), to be scaled by
`sharding.token_mean`; with `cache=` it prefills the cache and gives the row's last logits [vocabulary]; with
`NextTokens` and the caches of all prompts it decodes one step and gives [prompts, vocabulary]; with `Encode` it stops
at the embeddings of this rank's frames, which a batch may then bring along (`encoded_ND`). Everything runs inside
`forward`, so that a sharded root gathers its parameters once; the modules that are called by themselves, each once per
layer, are `layers()`.
No shape depends on data, so a step also runs on fake tensors: the loss therefore visits unlabelled tokens too.
Shapes: L row, S local tokens, N embeddings made here, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import SiglipVisionModel

from longvila import hybrid
from longvila.config import LongVilaConfig
from longvila.loss import TokenLoss, loss_sum, wide_dtype
from longvila.projector import Projector
from longvila.scales import multiscale
from longvila.sharding import Batch, LocalBatch, OneProcess, Sharding

PARTS_AGAIN = 4
"""Frames that are computed again anyway go in chunks of this part of `frames_per_chunk`: less memory, the same work."""


@dataclass(frozen=True, kw_only=True)
class NextTokens:
    """One more token of each prompt that is answered, known to every rank of the context group."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Encode:
    """The frames of a batch are asked for alone: [own frames x tokens per frame, D]."""

    batch: Batch


class LongVilaForConditionalGeneration(nn.Module):
    """The three parts `tower`, `projector`, `llm` (a Hugging Face causal LM with `model` and an output embedding)."""

    def __init__(self, config: LongVilaConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        vision_config = config.vision_config()
        vision_config._attn_implementation = "sdpa"
        self.tower = SiglipVisionModel(vision_config)
        # The selected layer's output is taken before the final norm, which is thus no part of the model.
        self.tower.post_layernorm = nn.Identity()  # type: ignore[assignment]
        self.llm: Any = hybrid.build(config.llm, attention)
        self.projector = Projector(config.projector, config.vision_width, self.llm.config.hidden_size)

    def layers(self) -> list[nn.Module]:
        """The repeated blocks, in the order of their first use: what a sharding or a recompute policy wraps."""
        return [*self.tower.encoder.layers, *self.llm.model.layers]

    def forward(
        self, given: Batch | NextTokens | Encode, sharding: Sharding | None = None, *, cache: Any = None,
        token_loss: TokenLoss | None = None, temperature: float = 1.0,
    ) -> Tensor:  # fmt: skip
        """`token_loss` and `temperature` (logits are divided by it) are of the loss; see `longvila.loss`."""
        sharding = sharding or OneProcess()
        if isinstance(given, NextTokens):
            return self._decode(given, sharding, cache)
        if isinstance(given, Encode):
            return self._encoded(given.batch, sharding)
        local = sharding.shard_batch(given)
        hidden_SD = self._hidden(given, local, sharding, cache)
        if cache is None:
            hidden_SD = hidden_SD if temperature == 1 else hidden_SD / temperature
            return loss_sum(hidden_SD, self._head_weight(), local.labels_S, self.config.loss_chunk_tokens, token_loss)
        return self._logits(sharding.from_last_token(hidden_SD, given))

    def encode_frames(self, pixels_FCHW: Tensor, most_frames: int) -> Tensor:
        """Frames of this process -> [F * tokens per frame, D]; every process calls the tower equally often.

        `most_frames` is the most frames that any process encodes at this time. More than `frames_per_chunk` are
        computed again in backward, and then go in equal chunks of at most a quarter of it. With `video_pool` p, each p
        frames are one in the result, and in `most_frames`.

        A process without frames encodes an empty picture and drops its embeddings, so that it joins the
        collectives of a sharded tower and its gradient is exactly zero.
        """
        pool = self.config.video_pool
        frames = pixels_FCHW.shape[0]
        most = max(frames, most_frames * pool, 1)
        limit = self.config.frames_per_chunk or most
        calls = 1 if most <= limit else min(most, -(-most * PARTS_AGAIN // limit))
        size = -(-most // (calls * pool)) * pool
        tower_grad = torch.is_grad_enabled() and any(p.requires_grad for p in self.tower.parameters())
        kept = []
        for start in range(0, calls * size, size):
            chunk = pixels_FCHW[start : start + size]
            real = chunk if chunk.shape[0] else pixels_FCHW.new_zeros(pool, *pixels_FCHW.shape[1:])
            again = tower_grad and calls > 1
            embedded: Tensor = checkpoint(self._embed, real, use_reentrant=False) if again else self._embed(real)
            kept.append(embedded[: chunk.shape[0] // pool].flatten(0, 1))
        return torch.cat(kept)

    def _embed(self, pixels_FCHW: Tensor) -> Tensor:
        scales = self.config.s2_scales
        patches_FPC = multiscale(self._patches, pixels_FCHW, scales) if scales else self._patches(pixels_FCHW)
        embeddings_FPD: Tensor = self.projector(patches_FPC.repeat(1, 1, self.config.s2_repeat))
        pool = self.config.video_pool
        return embeddings_FPD if pool == 1 else embeddings_FPD.unflatten(0, (-1, pool)).mean(1)

    def _patches(self, pixels_FCHW: Tensor) -> Tensor:
        patches_FPC: Tensor = self.tower(pixel_values=pixels_FCHW).last_hidden_state
        return patches_FPC

    def _hidden(self, batch: Batch, local: LocalBatch, sharding: Sharding, cache: Any) -> Tensor:
        made_ND = self._encoded(batch, sharding) if batch.encoded_ND is None else batch.encoded_ND
        vision_VD = sharding.exchange_embeddings(made_ND, batch)
        text_SD = self.llm.get_input_embeddings()(local.input_ids_S)
        # By index: `masked_scatter` would hold 8 bytes for each of the S x D numbers on CUDA. An exchange that brought
        # nothing is in the graph all the same and takes its (empty) part in the backward exchange.
        inputs_SD = text_SD.index_copy(0, local.vision_at_V, vision_VD.to(text_SD.dtype))
        # use_cache=False keeps past_key_values None: with a cache object Hugging Face no longer reads the packed
        # documents off the restarting positions, and they would see each other.
        output = self.llm.model(
            inputs_embeds=inputs_SD[None],
            position_ids=local.positions_S[None],
            past_key_values=cache,
            use_cache=cache is not None,
            **local.attention,
        )
        hidden_SD: Tensor = output.last_hidden_state[0]
        return hidden_SD

    def _encoded(self, batch: Batch, sharding: Sharding) -> Tensor:
        most_frames = sharding.most_own_frames(max(batch.frames, batch.most_frames))
        return self.encode_frames(batch.pixels_FCHW, most_frames)

    def _decode(self, given: NextTokens, sharding: Sharding, caches: Sequence[Any]) -> Tensor:
        table = self.llm.get_input_embeddings()
        tokens_B1, positions_B1 = torch.tensor((given.tokens, given.positions), device=table.weight.device)[..., None]
        hidden_PD = []
        for call in sharding.decode_calls(caches):
            output = self.llm.model(
                inputs_embeds=table(tokens_B1[call.prompts]),
                position_ids=positions_B1[call.prompts],
                past_key_values=call.cache,
                use_cache=True,
                **call.attention,
            )
            hidden_PD.append(output.last_hidden_state[:, -1])
        return self._logits(torch.cat(hidden_PD))

    def _logits(self, hidden_D: Tensor) -> Tensor:
        logits: Tensor = self.llm.get_output_embeddings()(hidden_D)
        return logits.to(wide_dtype(logits.dtype))

    def _head_weight(self) -> Tensor:
        weight: Tensor = self.llm.get_output_embeddings().weight
        return weight
