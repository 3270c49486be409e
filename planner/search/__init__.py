"""Which layouts exist, what each costs at least, and the integer program that chooses among the few that can win.

space            legal degrees, sharding and recompute        placements     ranks onto slots
optimistic_paths, branch   lower bounds that hold for every placement   best_first     until nothing can be better
policy_prices    linear prices by recompute policy            columns        layouts priced on placements
integer_program  the choice, with recompute by layer          losers, remedies   why not, and what would fit
"""
