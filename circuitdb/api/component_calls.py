"""The calls of a database about what single components do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdb.api.access import Access, Report, silent
from circuitdb.api.options import check_names

if TYPE_CHECKING:
    from circuitdb.looks import Looks
    from circuitdb.roles import RolesOverTraining


class ComponentCalls:
    """What heads and MLPs do: their roles, and single prompts looked at."""

    _access: Access

    def roles(
        self, task: str | None = None, *, report: Report = silent, **options: Any
    ) -> RolesOverTraining:
        """Which heads of a model hold which roles, checkpoint by checkpoint (docs/roles.md).

        What is stored is not measured again.

        Args:
            task: measure roles on its prompts too.
            report: progress.
            options: further fields of :class:`circuitdb.api.roles.RoleOptions`: ``model``, ``seed``,
                ``checkpoints``, ``roles``, ``prompts``, ``data_seed``, ``circuit``, ``device``.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api.roles import RoleOptions, roles_of

        check_names("option", options, RoleOptions._fields, of="roles")
        return roles_of(self._access, RoleOptions(task, **options), report)

    def attention(self, head: str, *, path: str | Path | None = None, **options: Any) -> Looks:
        """Where a head looks on single prompts, and its direct logits.

        Args:
            head: such as ``a2.h1``.
            path: draw the patterns there: .svg, .png or .pdf.
            options: fields of :class:`circuitdb.api.looking.LookOptions`: ``task``, ``model``,
                ``checkpoint``, ``seed``, ``n``, ``split``, ``data_seed``, ``top``, ``device``.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import looking

        return looking.drawn(path, options, lambda o: looking.attention(self._access, head, o))

    def lens(
        self, component: str | None = None, *, path: str | Path | None = None, **options: Any
    ) -> Looks:
        """The logit lens on single prompts, and the direct logits of a component.

        Args:
            component: a head or MLP; none for the stream alone.
            path: draw the lens there: .svg, .png or .pdf.
            options: as for :meth:`attention`.

        Raises:
            InputError: one of its kinds says what cannot be done as asked.
        """
        from circuitdb.api import looking

        return looking.drawn(path, options, lambda o: looking.lens(component, o))
