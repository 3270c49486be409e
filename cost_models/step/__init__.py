"""A step as segments: layers, vision, embedding and head, update, and what sharding adds to each."""
