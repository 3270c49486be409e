"""LongVILA: the model, its data and its training; knows nothing of plans."""
