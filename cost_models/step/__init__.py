"""The step: sizes of one rank, layers, vision side and pipeline, assembled into the program that all play."""
