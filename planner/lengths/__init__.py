"""Documents of many lengths: one layout for all of them, or groups of GPUs of any size for each batch."""
