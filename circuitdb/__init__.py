"""circuitdb: the database of neural-network circuits."""

__version__ = "0.1.0"
