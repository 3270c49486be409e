"""A decoder layer on one rank: its sizes, its table of operators, and what is folded from them."""
