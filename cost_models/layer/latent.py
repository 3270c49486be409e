"""The inputs of multi-head latent attention as operators.

    norm · down products (q_rank; kv_rank + rope) · two norms · [gather of what they gave] · up products per head
         · rotary on the rope parts · queries and keys put together

The down products are the same for all heads: every tensor rank computes them for its tokens, and what is gathered
is their narrow result. Bytes per token and head (fused rotary): queries r w rope in place; keys and values read
nope + v, write nope + rope + v. Unfused: rotary in 8 passes over the rope parts, and copies of q, k and v. Kept with
queries, keys and values: both compressions, as they were and normalised. The host's calls are counted as a dense
layer's.
"""

from __future__ import annotations

from cost_models.layer.operators import Table, elementwise, moves, multiplies, norm, tensor_operator
from cost_models.layer.sizes import RankSizes
from cost_models.models.latent import Latent


def latent_inputs(sizes: RankSizes, latent: Latent) -> Table:
    model, heads = sizes.workload.model, sizes.workload.model.heads // sizes.degrees.tensor
    outer, tokens, narrow = sizes.outer_tokens, sizes.tokens, latent.kv_rank + latent.rope_dim
    down = [(outer, narrow, model.hidden)] + ([(outer, latent.q_rank, model.hidden)] if latent.q_rank else [])
    queries = (tokens, heads * latent.qk_dim, latent.q_rank or model.hidden)
    keys = (tokens, heads * (latent.nope_dim + latent.v_dim), latent.kv_rank)
    first = norm(sizes, "norm")
    small, back = (passes.moved * latent.norm_params / model.hidden for passes in first.passes)
    launches = 1 if sizes.framework.norm == "fused" else 6
    made = tokens * heads * _made_columns(sizes, latent) * sizes.width
    return (
        first,
        multiplies(sizes, "compress", *down),
        elementwise(
            sizes, "latent norms", small, 2 * launches, back=back, kept=2 * tokens * latent.norm_params * sizes.width
        ),
        *tensor_operator(sizes, "qkv", "all_gather", (latent.q_rank or model.hidden) + narrow),
        multiplies(sizes, "qkv", queries, host=(13, 26)),
        multiplies(sizes, "qkv", keys),
        moves(sizes, "rotary", made, 2 if sizes.framework.rotary == "fused" else 19),
    )


def _made_columns(sizes: RankSizes, latent: Latent) -> int:
    """Columns per head that are read or written between the products and attention (as many for the gradients)."""
    if sizes.framework.rotary == "fused":
        return 2 * latent.rope_dim + 2 * (latent.nope_dim + latent.v_dim) + latent.rope_dim
    return 2 * 8 * latent.rope_dim + 2 * (2 * latent.qk_dim + latent.v_dim)
