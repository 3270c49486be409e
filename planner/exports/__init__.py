"""A plan as another program's files: one module for each target, `files(plan) -> Export`."""
