"""Questions that ask for what a plan is given: the longest context, the fewest GPUs, what failures leave."""
