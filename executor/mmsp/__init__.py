"""Multi-modal sequence parallelism: the attention, embeddings and cache of a row that is split over many ranks."""

from cost_models.layer import recompute

POLICIES = tuple(name for name, policy in recompute.POLICIES.items() if policy.planned)
"""Of the recompute policies, those that run; the others are priced only."""
KEEPING_INPUT = tuple(name for name in POLICIES if recompute.policy(name).keeps_input)
"""Policies under which a layer's input is kept by itself, so that it can wait in host memory."""
