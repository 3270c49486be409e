"""`executor check`: counts the memory of a plan on its real step, with fake tensors."""
