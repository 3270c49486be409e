"""Multi-modal sequence parallelism: which tokens a rank holds, and the attention, embeddings and cache over them."""
