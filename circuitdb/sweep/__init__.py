"""Sweeps: many discoveries stated by one recipe.

``recipe`` is what its file says, ``expand`` makes its jobs, ``job`` is one of them.
"""
