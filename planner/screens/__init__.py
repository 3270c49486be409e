"""Answers as lines for a terminal: plans, prices, layouts, simulations, targets, and what can be planned for."""
