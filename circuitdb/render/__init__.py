"""Drawings of circuits and of their overlaps, as DOT, SVG, PNG, PDF and HTML."""

from circuitdb.render.consensus import consensus_dot
from circuitdb.render.dot import to_dot
from circuitdb.render.output import check_path, save, to_svg
from circuitdb.render.overlap import DRAWN, check_number, overlap_dot
from circuitdb.render.page import Table, edge_table

__all__ = [
    "DRAWN",
    "Table",
    "check_number",
    "check_path",
    "consensus_dot",
    "edge_table",
    "overlap_dot",
    "save",
    "to_dot",
    "to_svg",
]
