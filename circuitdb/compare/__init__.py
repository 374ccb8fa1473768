"""Comparison: how circuits overlap, and whether by more than chance.

:mod:`~circuitdb.compare.overlap` is its face. Nothing of what two circuits' overlap needs imports
torch, scipy, pandas or the store: :class:`~circuitdb.compare.comparable.Compared` carries all
that circuits are compared by.
"""
