"""Printed topologies -> a Cluster: one file per format, told apart by content."""
