"""Peak memory of a rank: what is alive at each moment of the step, and the pipeline stage that holds most."""
