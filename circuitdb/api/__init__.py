"""The Python face of circuitdb.

>>> import circuitdb
>>> db = circuitdb.open("circuits.duckdb")                       # doctest: +SKIP
>>> db.discover("months")                                        # doctest: +SKIP
>>> db.overlap("ioi", "greater_than").pairs[0].jaccard           # doctest: +SKIP

:class:`Database` says what can be asked; each of its calls is carried out by the module of its
concern, which gets the :class:`~circuitdb.api.access.Access` to the file: ``asking``,
``discovering``, ``repeating``, ``comparing`` (on what ``compared`` reads) and ``evaluating``. They
are imported by the first call that needs them.
"""

from circuitdb.api.database import Database, Renamed, open
from circuitdb.api.plans import make_plan, plan_of_reference, prompts

__all__ = ["Database", "Renamed", "make_plan", "open", "plan_of_reference", "prompts"]
