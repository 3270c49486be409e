"""A step played as discrete events: collectives as flows that share the cluster's links max-min fairly, folded.

simulation   the entry: program, cluster and placement in, a `result` out: times, memory and busiest links
played_program   the step at the slowest device's pace
streams      a step program written out as streams         playback   the event engine, its streams and clocks
topology     links and routes                              flows      a collective as the flows it sends
maxmin, filling   fair rates     transfers   bytes in flight     network   the folded links that flows share
folding, link_classes   which ranks and links are alike    islands    which of them run apart
fast_forward   skips repeated rounds, layers, microbatches
trace   what Perfetto opens      goal   what LogGOPSim replays     compare   measured traces      command   the commands
"""
