"""Multi-modal sequence parallelism: the attention, embeddings and cache of a row that is split over many ranks."""

from cost_models.layer import recompute

POLICIES = tuple(name for name, policy in recompute.POLICIES.items() if policy.planned)
"""Of the recompute policies, those that run; the others are priced only."""
