"""A proof that a plan carries, and its check: which shares no code with the search whose bound it stands beside."""
