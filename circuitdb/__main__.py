"""``python -m circuitdb``: the same as the command ``circuitdb``."""

from __future__ import annotations

from circuitdb.cli import main

if __name__ == "__main__":
    main()
