"""One face for every tokenizer: plain ids, character spans, and whether a text is one token.

Everything rests on Hugging Face `tokenizers`, so a file ``tokenizer.json`` is all that is needed.
Special tokens are never added here; whether a prompt starts with BOS is decided when prompts are
built.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdb.circuit import canonical_json
from circuitdb.errors import ModelError, PromptError

if TYPE_CHECKING:
    import tokenizers

Span = tuple[int, int]


class Tokenizer:
    """A tokenizer as tasks need it.

    Attributes:
        backend: the `tokenizers.Tokenizer` underneath.
        bos_id: id of the token a prompt may start with; None where there is none.
        unknown_id: id that words outside a closed vocabulary get; None where every text has tokens.
        rows: token ids that the model it serves knows, 0 to one less; None where it serves none.
            Often more than the tokenizer has (padding); ids beyond are refused where they occur,
            because many tokenizers have some that no text uses.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, bos: str | None = None, rows: int | None = None
    ) -> None:
        self.backend, self.rows = backend, rows
        self.bos_id: int | None = None if bos is None else backend.token_to_id(bos)
        if bos is not None and self.bos_id is None:
            raise PromptError(f"the tokenizer has no token {bos!r} to start prompts with")
        unknown = getattr(backend.model, "unk_token", None)
        self.unknown_id: int | None = None if unknown is None else backend.token_to_id(unknown)
        self._single: dict[str, int | None] = {}

    @classmethod
    def from_file(
        cls, path: str | Path, bos: str | None = None, rows: int | None = None
    ) -> Tokenizer:
        """A tokenizer read from a ``tokenizer.json``.

        Raises:
            PromptError: the file is missing or no tokenizer, or has no token `bos`.
        """
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the binding raises bare Exception for every cause
            raise PromptError(f"no tokenizer can be read from {str(path)!r}: {error}") from error
        return cls(backend, bos, rows)

    @classmethod
    def from_backend(cls, backend: tokenizers.Tokenizer, bos: str | None = None) -> Tokenizer:
        """A `tokenizers.Tokenizer` already in memory."""
        return cls(backend, bos)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids and, for each, the characters ``[start, end)`` it stands for.

        Byte-level tokenizers may leave the leading space out of a token's span.
        """
        encoding = self.backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def unknown(self, text: str) -> tuple[str, ...]:
        """The pieces of a text that are in no vocabulary and would all be read as one token."""
        if self.unknown_id is None:
            return ()
        ids, spans = self.encode_spans(text)
        read = zip(ids, spans, strict=True)
        return tuple(dict.fromkeys(text[a:b] for i, (a, b) in read if i == self.unknown_id))

    def single(self, text: str) -> int | None:
        """The id of a text that is exactly one known token, else None."""
        if text not in self._single:
            ids = self.encode(text)
            known = len(ids) == 1 and ids[0] != self.unknown_id
            self._single[text] = ids[0] if known else None
        return self._single[text]

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of token ids, special tokens shown."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=False)
        return text

    def token(self, token_id: int) -> str:
        """One token as text, its leading space kept."""
        return self.decode([token_id])

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of ``tokenizer.json``, 64 hex digits."""
        content = canonical_json(json.loads(self.backend.to_str()))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        size: int = self.backend.get_vocab_size(with_added_tokens=True)
        return size

    def require_rows(self, ids: Iterable[int], where: str) -> None:
        """Refuse token ids that the model does not know.

        Raises:
            ModelError: there is one; the message begins with `where`.
        """
        if self.rows is None:
            return
        beyond = next((i for i in ids if i >= self.rows), None)
        if beyond is not None:
            raise ModelError(
                f"{where}: the token {self.token(beyond)!r} has id {beyond}, and the model's "
                f"embedding only {self.rows} rows, for ids up to {self.rows - 1} (its tokenizer has "
                f"{self.vocab_size}): put the model's own tokenizer.json beside its weights, or give "
                "the embedding the missing rows"
            )

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the added special tokens, among them BOS and the unknown token."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    @functools.cached_property
    def splits_digits(self) -> bool:
        """Whether every digit is a token of its own, as in SmolLM2 and Llama."""
        return all(len(self.encode(year)) == len(year) for year in ("1732", "1865", "12"))
