"""The calls of a database about feature dictionaries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdb.api.access import Access, Report, silent

if TYPE_CHECKING:
    from circuitdb.api.dictionary_training import Trained
    from circuitdb.api.features import Features
    from circuitdb.api.sae import Measured, Training, Which
    from circuitdb.dictionaries.located import Located
    from circuitdb.dictionaries.record import Record
    from circuitdb.models.model import LoadedModel


class DictionaryCalls:
    """Feature dictionaries and their features."""

    _access: Access

    def train_dictionaries(
        self, name: str, out: Path, which: Which, training: Training, *, report: Report = silent
    ) -> Trained:
        """Train feature dictionaries, write them into a folder and store what is known of them.

        Args:
            name: of the set.
            out: the folder, which is made.
            which: the model and the text.
            training: what is trained, and how.
            report: progress.

        Raises:
            OptionError: options out of range, or that do not go together.
            DictionaryError: the folder or the name is taken.
            NumericalError: a loss is not finite.
        """
        from circuitdb.api import dictionary_training

        return dictionary_training.train(self._access, name, out, which, training, report)

    def evaluate_dictionaries(
        self, names: Sequence[str], which: Which, *, report: Report = silent
    ) -> Measured:
        """Measure feature dictionaries by name on held-out text; the figures are stored.

        Raises:
            UnknownNameError: no such set belongs to the model.
            DictionaryError: files are gone, or do not fit.
        """
        from circuitdb.api import sae

        return sae.evaluate(self._access, names, which, report)

    def import_dictionaries(
        self,
        folder: Path,
        which: Which,
        *,
        name: str | None = None,
        site: str | None = None,
        force: bool = False,
        report: Report = silent,
    ) -> tuple[Record, ...]:
        """Take in feature dictionaries from folders of sae-lens's layout.

        Raises:
            DictionaryError: nothing to read there, a pickle, or it does not fit.
            OptionError: a name or a site is needed, or the name is taken.
        """
        from circuitdb.api import sae

        return sae.take_in(self._access, folder, which, report, name=name, site=site, force=force)

    def dictionaries(self, name: str | None = None) -> list[Record]:
        """What is known of the feature dictionaries in the database and in the package.

        Raises:
            UnknownNameError: there is no set of that name.
        """
        from circuitdb.api import dictionaries

        return dictionaries.listed(self._access, name)

    def located(self, names: Sequence[str], model: LoadedModel) -> list[Located]:
        """The feature dictionaries that names stand for, in forward order of their sites.

        Raises:
            UnknownNameError: no such set belongs to the model's weights.
            DictionaryError: files are gone or changed, or do not fit the model.
        """
        from circuitdb.api import dictionaries

        return dictionaries.located(self._access, names, model)

    def forget_dictionaries(self, name: str) -> tuple[Record, ...]:
        """Forget the stored feature dictionaries of a set; their files stay.

        Profiles and matches of those that no other set has go too, with a notice; labels stay.

        Raises:
            UnknownNameError: none is stored under that name.
        """
        from circuitdb.api import sae

        return sae.forget(self._access, name)

    @property
    def features(self) -> Features:
        """What the features of dictionaries do, what they are called, and which correspond."""
        from circuitdb.api.features import Features

        return Features(self._access)
