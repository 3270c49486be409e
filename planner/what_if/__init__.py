"""What happens to a plan if the network slows, nodes are lost, or the question changes; `plan what-if` asks it."""
