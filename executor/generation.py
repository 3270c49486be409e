"""`model.generate` of Hugging Face on a model whose attention is "mm_sp": every rank calls it with the same arguments.

    model = sharding.wrap(AutoModelForCausalLM.from_config(config, attn_implementation="mm_sp"))
    generates(model, sharding)
    model.generate(input_ids, attention_mask=…, do_sample=True, top_p=0.9)            the same tokens on every rank

Hooks around the model's call do the rest. The prefill: prompts of unequal lengths (padded on the left, as generate
wants them) become one packed row without padding, which is cut over the context group; of each prompt the rank that
has its last token gives its logits. A step: one token of each prompt over the sharded cache; the first rank's logits
count, so ranks agree on every token, and they stop when it does. Prompts and tokens that differ by rank are refused.
Ranks draw alike: at the prefill all take the first rank's random state. Leaves out: beams, an assistant, several tokens
at once, embeddings instead of ids, caches of another kind, hidden states, calls outside `generate` (all refused), and
pictures.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ReduceOp
from transformers import DynamicCache, GenerationMixin, StoppingCriteriaList

from cost_models.errors import InputError
from executor.groups import Axis, digest
from executor.mmsp.decode import DecodeStep, ShardedCache
from executor.sharding import ContextSharding
from longvila.sharding import IGNORE, Batch


def generates(model: nn.Module, sharding: ContextSharding) -> None:
    """Make `model.generate` compute over the sharding's context group. Calls with `mm_sp` are left as they are."""
    if not isinstance(model, GenerationMixin):
        raise InputError(f"{type(model).__name__} is no model of transformers that generates")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise InputError(f"{type(model).__name__} takes no logits_to_keep: its last tokens cannot be asked for")
    generating: Any = model
    given, context = generating._get_stopping_criteria, sharding.groups.context

    def criteria(*args: Any, **kwargs: Any) -> _Agreed:
        return _Agreed(given(*args, **kwargs), context)

    generating._get_stopping_criteria = criteria
    hooks = _Hooks(sharding)
    model.register_forward_pre_hook(hooks.before, with_kwargs=True, prepend=True)
    model.register_forward_hook(hooks.after, with_kwargs=True)


class _Agreed(StoppingCriteriaList):
    """When to stop, as the first rank finds: a limit of time, or a criterion of the user's, may differ by rank."""

    def __init__(self, criteria: StoppingCriteriaList, context: Axis) -> None:
        super().__init__(criteria)
        self._context = context

    def __call__(self, input_ids: Any, scores: Any, **given: Any) -> Any:
        return self._context.broadcast(super().__call__(input_ids, scores, **given).to(torch.uint8)).bool()


class _Hooks:
    def __init__(self, sharding: ContextSharding) -> None:
        self._sharding = sharding

    def before(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if given.get("mm_sp") is not None:
            return None
        kept, cache = dict(given), given.get("past_key_values")
        ids, mask = kept.get("input_ids"), kept.pop("attention_mask", None)
        if args or ids is None or kept.get("labels") is not None or not kept.get("use_cache", True):
            raise InputError("generate over ranks takes input_ids by keyword, no labels, and a cache (use_cache=True)")
        if kept.get("output_hidden_states") or getattr(module.config, "output_hidden_states", False):
            raise InputError("output_hidden_states: no rank has those of all tokens; set it to False")
        if isinstance(cache, ShardedCache | DecodeStep):
            self._compare("chose different tokens: logits processors and random numbers must not differ by rank", ids)
            step = DecodeStep(self._context.exchange(), cache.shards)
            places = torch.tensor([[shard.tokens - 1] for shard in step.shards], device=ids.device)
            return args, kept | {"position_ids": places, "past_key_values": step, "logits_to_keep": 0, **step.attention}
        _refuse_prefill(cache, kept.get("logits_to_keep"))
        self._compare("were given different prompts: every rank calls generate with the same ones", ids, mask)
        self._share_random_state()
        local, cache = self._sharding.shard_batch(_packed(ids, mask)), self._sharding.cache()
        return args, kept | {
            "input_ids": local.input_ids_S[None],
            "position_ids": local.positions_S[None],
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": torch.tensor([max(part.stop - 1, 0) for part, _ in cache.parts], device=ids.device),
            **local.attention,
        }

    def after(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
        cache = given.get("past_key_values")
        if isinstance(cache, ShardedCache):
            # (1, prompts, vocabulary): those of a prompt's last token on one rank, of any other token elsewhere.
            here = torch.tensor([shard.places[-1:] == [shard.tokens - 1] for shard in cache.shards])
            logits = output.logits[0].where(here[:, None].to(output.logits.device), 0)
            output.logits = self._context.reduce(logits, ReduceOp.SUM)[:, None]
        elif isinstance(cache, DecodeStep):
            output.logits = self._context.broadcast(output.logits.contiguous())
        return output

    @property
    def _context(self) -> Axis:
        return self._sharding.groups.context

    def _compare(self, fault: str, *given: Tensor | None) -> None:
        if not self._context.alike(digest(*given), self._sharding.device):
            raise InputError(f"ranks {fault}")

    def _share_random_state(self) -> None:
        """All ranks draw from the first one's random state from now on."""
        device = self._sharding.device
        torch.set_rng_state(self._context.broadcast(torch.get_rng_state().to(device)).cpu())
        if device.type == "cuda":
            state = torch.cuda.get_rng_state(device).to(device)
            torch.cuda.set_rng_state(self._context.broadcast(state).cpu(), device)


def _refuse_prefill(cache: Any, logits: Any) -> None:
    """What begins otherwise than `generate` alone does: for a cache of fixed size it makes the mask itself, which
    attention of another name does not get."""
    if cache is None:
        raise InputError("the model was given to `generates`: call model.generate, or pass **local.attention")
    if type(cache) is not DynamicCache:
        raise InputError(
            f"generate over ranks keeps keys in a cache of its own, not in a {type(cache).__name__}: leave it out"
        )
    if cache.get_seq_length():
        raise InputError("generate over ranks begins with an empty cache")
    if isinstance(logits, int) and logits > 1:
        raise InputError("generate over ranks asks for one token at a time: no assistant, no prompt_lookup_num_tokens")


def _packed(ids_BS: Tensor, mask_BS: Tensor | None) -> Batch:
    """Prompts that are padded on the left, one after another without the padding."""
    mask_BS = torch.ones_like(ids_BS) if mask_BS is None else mask_BS
    seen_BS = mask_BS.bool()
    if mask_BS.shape != ids_BS.shape or not bool((seen_BS[:, :-1] <= seen_BS[:, 1:]).all() and seen_BS[:, -1].all()):
        raise InputError("generate over ranks takes prompts that are padded on the left: an attention_mask 0 … 0 1 … 1")
    prompt_BS = torch.arange(len(ids_BS), device=ids_BS.device)[:, None].expand_as(ids_BS)
    ids_L = ids_BS[seen_BS]
    return Batch(
        input_ids_L=ids_L,
        labels_L=torch.full_like(ids_L, IGNORE),
        positions_L=(seen_BS.cumsum(1) - 1)[seen_BS],
        document_L=prompt_BS[seen_BS].cpu(),
        vision_at_V=torch.zeros(0, dtype=torch.int64),
        frames=0,
        pixels_FCHW=torch.zeros(0, 3, 1, 1),
    )
