"""The Python face of circuitdb.

>>> import circuitdb
>>> db = circuitdb.open("circuits.duckdb")                       # doctest: +SKIP
>>> db.discover("months")                                        # doctest: +SKIP
>>> db.overlap("ioi", "greater_than").pairs[0].jaccard           # doctest: +SKIP

:class:`Database` says what can be asked. Its calls are gathered by concern in the modules
``*_calls`` (``discovery_calls``, ``comparison_calls`` …); what is more than one look into the file is
carried out by a module of its own (``discovering``, ``comparing``, ``evaluating`` …), which gets the
:class:`~circuitdb.api.access.Access` to the file and is imported by the first call that needs it.
"""

from circuitdb.api.database import Database, Renamed, open
from circuitdb.api.plans import make_plan, plan_of_reference, prompts

__all__ = ["Database", "Renamed", "make_plan", "open", "plan_of_reference", "prompts"]
