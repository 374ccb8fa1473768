"""Directions: fitted, patched, compared (docs/directions.md)."""
