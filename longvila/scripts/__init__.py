"""Shooting scripts as data: read in the forms that are published, asked about in VILA's lines, and made with films."""
