"""Search, integer program, placement, simulator and what-if: from a cluster and a workload to a plan. No torch."""
