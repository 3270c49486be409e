"""A distillation planned: its layers packed onto GPUs, and which of them keep attention."""
