"""Packed measurements and how they are read between and beyond their points. Data: one .npz per device or link."""
