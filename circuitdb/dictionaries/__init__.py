"""Feature dictionaries: what they compute, how they are trained, and their files."""
