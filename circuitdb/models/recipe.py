"""What a training recipe says: architecture, mixture of tasks, optimisation, checkpoints.

The files are read by :mod:`circuitdb.ingest`; training them is :mod:`circuitdb.models.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from circuitdb import schedules, tasks
from circuitdb.circuit import digest
from circuitdb.errors import CircuitdbError, UnknownNameError
from circuitdb.models.vocabulary import word_lists

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]

_LOOSE: Final = {"summary", "embedded", "seeds", "checkpoints"}
"""Keys that do not decide the weights of a seed."""
_TEXT: Final = "texts.sha256"
_SHOWN: Final = 4
"""So many keys in which recipes differ are named."""


class PlaceError(ValueError):
    """A fault between several keys, with the one at which it is told."""

    def __init__(self, where: tuple[str | int, ...], told: str) -> None:
        super().__init__(told)
        self.where = where


def _leaves(value: Any, at: str = "") -> dict[str, Any]:
    """The values inside mappings and lists, by their keys in dots."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {at: value}
    found: dict[str, Any] = {}
    for key, inner in items:
        found |= _leaves(inner, f"{at}.{key}" if at else str(key))
    return found


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    added: ClassVar[frozenset[str]] = frozenset()
    """Keys that the first recipes did not have. Left out at their defaults, so that the hashes
    recorded beside weights stay those of their recipes."""

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields, dumped = type(self).model_fields, dump(self)
        new = {k for k in self.added if getattr(self, k) == fields[k].default}
        return {key: value for key, value in dumped.items() if key not in new}


def _as_value_error(check: Callable[[], object]) -> None:
    """Have pydantic say where in a recipe something is wrong that circuitdb knows to be so."""
    try:
        check()
    except CircuitdbError as error:
        raise ValueError(str(error)) from error


def _known_lists(names: Iterable[str]) -> None:
    there = word_lists()
    for name in names:
        if name not in there:
            raise UnknownNameError("word list", name, there)


class Architecture(_Frozen):
    """A GPT-2: layer norm, learned positions, gelu_new, biases everywhere."""

    n_layers: Positive
    n_heads: Positive
    d_model: Positive
    d_mlp: Positive
    n_context: Positive = 128
    tied: bool = False
    """Whether the unembedding is the embedding."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Architecture:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}")
        return self


class Repeats(_Frozen):
    """Random words that start over, learned at every word of the second time.

    They make heads look for what followed the same word before. Tasks that bind a name to what is
    said of it are hardly learned without: their own loss says nothing until all parts are there.
    """

    lists: Annotated[tuple[str, ...], Field(min_length=1)]
    """Word lists of the tasks the words are of, in small letters."""
    rows: Positive = 32
    """Sequences a step, beside the batch of texts."""
    shortest: Annotated[int, Field(ge=2)] = 4
    longest: Annotated[int, Field(ge=2)] = 10
    """Words before they start over."""
    before: Annotated[int, Field(ge=0)] = 8
    """Further random words before these, at most."""
    weight: Weight = 1.0
    """Weight of their loss beside the loss on the answers."""

    @field_validator("lists")
    @classmethod
    def _lists_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _as_value_error(lambda: _known_lists(names))
        return names


class TextLesson(_Frozen):
    """Pieces of the user's text, learned at every token."""

    batch: Positive = 128
    """Pieces a step, each from a place drawn at random."""
    context: Annotated[int, Field(ge=2)] | None = None
    """Tokens a piece; the architecture's context where null."""
    weight: Weight = 1.0
    """Weight of their loss beside the others."""


class Stage(_Frozen):
    """Some steps of the training, and what is learned in them."""

    added: ClassVar[frozenset[str]] = frozenset({"final_learning_rate", "text"})

    steps: Positive
    learning_rate: Weight = 1.5e-3
    final_learning_rate: Weight | None = None
    """Where the learning rate falls to by a cosine; null: a tenth in the last stage, and no fall
    in those before."""
    tasks: dict[str, Weight] = {}
    """Task name → weight; a batch holds texts in these proportions."""
    recall: dict[str, Weight] = {}
    """Task name → weight, beside those of the tasks, of its texts in which a sentence begins
    again and goes on as before."""
    repeats: Repeats | None = None
    text: TextLesson | None = None
    """From the text file that training is given."""

    @field_validator("tasks", "recall")
    @classmethod
    def _tasks_exist(cls, weights: dict[str, float]) -> dict[str, float]:
        for name in weights:
            _as_value_error(lambda name=name: tasks.get(name))  # type: ignore[misc]
        return weights

    @model_validator(mode="after")
    def _something_to_learn(self) -> Stage:
        if not (self.tasks or self.recall or self.repeats or self.text):
            raise ValueError("a stage needs tasks, recall, repeats or text to learn from")
        return self


class Texts(_Frozen):
    """How the training texts are made. Only train splits are used."""

    added: ClassVar[frozenset[str]] = frozenset({"tokens", "words", "sha256"})

    tokens: Literal["words", "characters"] = "words"
    """What is one token: a word, as the tasks need it, or a character of the user's text."""
    words: Annotated[int, Field(ge=0)] = 4096
    """The most frequent words of the user's text that join the vocabulary where tokens are words."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the user's text file. Training fills it in; where a recipe gives it, no other text will do."""
    vocabulary: dict[str, Positive] = {}
    """Word list of the tasks, in small letters → words kept of it; others are kept whole."""
    pool: Positive = 16384
    """Texts generated per task; a task drawn more often sees them again."""
    corrupted_share: Share = 0.4
    """Share of corrupted prompts among a task's: they teach what does not follow."""
    prefixed_share: Share = 0.5
    """Share of texts behind a few random words, so that positions are not learned by heart."""

    @field_validator("vocabulary")
    @classmethod
    def _lists_exist(cls, limits: dict[str, int]) -> dict[str, int]:
        _as_value_error(lambda: _known_lists(limits))
        return limits


class Optimisation(_Frozen):
    """AdamW; every stage warms up linearly, the last falls to a tenth of its rate by a cosine."""

    batch: Positive = 64
    """Texts a step."""
    warmup: Annotated[int, Field(ge=0)] = 50
    """Steps of each stage."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    init_std: Weight = 0.1
    """Deviation of the untrained weights."""
    wavelengths: Annotated[float, Field(gt=1)] = 100.0
    """Positions start as sines and cosines; this is the ratio of the longest to the shortest."""
    smoothing: Share = 0.05
    """Share of the target spread over the vocabulary, which bounds the logits."""
    language_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the next-token loss over the whole text beside the loss on the answer."""
    language_stride: Positive = 4
    """The next-token loss is taken at every so many positions, others at every step."""


class Checkpoints(_Frozen):
    """Which weights are kept beside the final ones."""

    seeds: tuple[int, ...] | None = None
    """All of them where null."""
    steps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    schedule: str | None = None
    """Further steps: a schedule's name, ``all``, or steps and ranges such as ``0,500-4000/500``."""

    @field_validator("schedule")
    @classmethod
    def _schedule_exists(cls, wanted: str | None) -> str | None:
        if wanted is not None:
            _as_value_error(lambda: schedules.is_named(wanted) or schedules.listed(wanted))
        return wanted


class TrainRecipe(_Frozen):
    """Everything that decides the weights, on one machine and one version of the tasks."""

    kind: Literal["train"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    summary: str = ""
    embedded: bool = False
    """Write the packed fp16 layout of the family in the package, not Hugging Face's."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    data_seed: int = 0
    architecture: Architecture
    texts: Texts = Texts()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    optimisation: Optimisation = Optimisation()
    checkpoints: Checkpoints = Checkpoints()

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        again = next((s for i, s in enumerate(seeds) if s in seeds[:i]), None)
        if again is not None:
            raise ValueError(f"seed {again} is given twice; leave one out")
        return seeds

    @model_validator(mode="after")
    def _tokens_serve(self) -> TrainRecipe:
        if self.texts.tokens == "words":
            return self
        if not self.reads_text:
            raise ValueError("tokens are characters of a text, and no stage learns from 'text'")
        if any(stage.tasks or stage.recall or stage.repeats for stage in self.stages):
            raise ValueError(
                "tasks, recall and repeats are made of words: set texts.tokens to words, or leave "
                "them out"
            )
        return self

    @model_validator(mode="after")
    def _text_fits(self) -> TrainRecipe:
        most = self.architecture.n_context
        for i, stage in enumerate(self.stages):
            if stage.text and self.context_of(stage) > most:
                raise PlaceError(
                    ("stages", i, "text", "context"),
                    f"a text context of {self.context_of(stage)} exceeds the architecture's, {most}",
                )
        return self

    @model_validator(mode="after")
    def _checkpoints_exist(self) -> TrainRecipe:
        kept = self.checkpoints
        late = [s for s in kept.steps if s > self.steps]
        unknown = [s for s in kept.seeds or () if s not in self.seeds]
        if late:
            raise PlaceError(
                ("checkpoints", "steps"),
                f"checkpoints {late} lie beyond the last step, {self.steps}",
            )
        if unknown:
            raise PlaceError(
                ("checkpoints", "seeds"), f"checkpoints for seeds {unknown}, which are not trained"
            )
        if kept.schedule is not None:
            try:
                schedules.within(kept.schedule, self.steps)
            except CircuitdbError as error:
                raise PlaceError(("checkpoints", "schedule"), str(error)) from error
        return self

    @property
    def steps(self) -> int:
        """Steps of all stages together; checkpoints count from the first stage's first."""
        return sum(stage.steps for stage in self.stages)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of all stages, in order of their first occurrence."""
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.tasks))

    @property
    def reads_text(self) -> bool:
        """Whether a stage learns from a text file."""
        return any(stage.text for stage in self.stages)

    def stage_before(self, step: int) -> Stage:
        """The stage of the step that leads to a checkpoint; of step 0 the first."""
        left = step
        for stage in self.stages:
            left -= stage.steps
            if left <= 0:
                return stage
        raise ValueError(f"step {step} lies beyond the last, {self.steps}")

    def context_of(self, stage: Stage) -> int:
        """Tokens a piece of text has in a stage that learns from text."""
        assert stage.text is not None
        return stage.text.context or self.architecture.n_context

    @property
    def hash(self) -> str:
        """SHA-256 of all that decides the weights of a seed; the list of seeds does not."""
        return digest(self.model_dump(mode="json", exclude=_LOOSE))

    def told_apart(self, other: Mapping[str, Any] | None) -> str:
        """Another recipe as a message names it: by what it says otherwise.

        Args:
            other: as it is recorded beside weights; none where it is not.
        """
        own = _leaves(self.model_dump(mode="json", exclude=_LOOSE))
        its = _leaves({key: value for key, value in (other or {}).items() if key not in _LOOSE})
        keys = sorted(k for k in {*own, *its} if own.get(k) != its.get(k))
        if keys == [_TEXT]:
            return "this recipe trained on another text"
        if not other or not keys:
            return "another recipe"
        shown = ", ".join(keys[:_SHOWN]) + (
            f" and {len(keys) - _SHOWN} more" if keys[_SHOWN:] else ""
        )
        return f"another recipe (it differs in {shown})"

    def kept_steps(self, seed: int) -> tuple[int, ...]:
        """The steps after which the weights of a seed are written, ascending; the last always."""
        kept = self.checkpoints
        if kept.seeds is not None and seed not in kept.seeds:
            return (self.steps,)
        planned = schedules.within(kept.schedule or "last", self.steps)
        return tuple(sorted({*kept.steps, *planned}))
