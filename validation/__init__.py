"""Predicted against measured for published rows: readers, frameworks, statistics and the report.

The command is `python -m validation`. Nothing here is imported when plans are made.
"""
