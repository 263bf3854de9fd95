"""Dumps in, numbers and figures out. NumPy and matplotlib only."""
