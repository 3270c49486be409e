"""Multi-modal sequence parallelism: the attention, embeddings and cache of a row that is split over many ranks."""
