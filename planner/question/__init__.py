"""What the user typed, as a question: the shared options, the pins of `--fix`, and what does not go together."""
