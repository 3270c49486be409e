"""Which layouts exist, what each costs at least, and the integer program that chooses among the few that can win.

space             legal degrees, sharding and recompute    placements      ranks onto slots and GPUs
optimistic_paths  what no placement beats                  branch          lower bounds of layouts and ranges of rings
policy_prices     linear prices by recompute policy        layout_prices   … of many layouts at once
columns           layouts priced on placements
best_first        until nothing can be better              integer_program the choice, with recompute by layer
objective         what is minimised                        reasons, remedies   why not, and what would fit
"""
