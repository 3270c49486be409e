"""Hardware, model, workload and strategy as data, and what a piece of work costs on them. No torch."""
