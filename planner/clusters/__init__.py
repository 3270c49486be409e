"""Clusters as the planner sees them: drawn, written to a file, and with nearly equal nodes merged into kinds."""
