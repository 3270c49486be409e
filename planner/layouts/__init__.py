"""Which layouts exist, what each costs at least, and the integer program that chooses among the few that can win.

space        degrees, sharding and recompute that are legal      placing   axes onto slots
bounds, floors   lower bounds that hold for every placement      search    best first, until nothing can be better
laid, candidates, remembered   layouts on placements, priced as arrays
integer_program   the choice, with recompute by layer            losers, remedies   why not, and what would fit
"""
