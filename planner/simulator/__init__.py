"""A step played as discrete events: collectives as flows that share the cluster's links max-min fairly, folded.

simulation   the entry: program, cluster and placement in, times and busiest links out
script       a step program written out as streams         playback   the event engine, its streams and clocks
topology     links and routes                              flows      a collective as the flows it sends
maxmin       fair rates        flight   flows under way     network    the folded links that flows share
folding, link_classes   which ranks and links are alike    steady     jumps over repeated layers
trace        what Perfetto opens
"""
