"""From a plan to running ranks: is this host able to, which host takes which slot, start, watch and end the ranks."""
