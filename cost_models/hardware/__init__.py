"""What there is: accelerators, nodes, links between them and where each rank runs, as data with sources."""
