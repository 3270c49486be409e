"""Data sets as they are published: files of conversations, the media that they name, and their faults."""
