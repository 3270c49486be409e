"""A plan made real: process groups, MM-SP attention, sharding, launch and profile."""
