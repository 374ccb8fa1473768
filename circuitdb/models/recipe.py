"""What a training recipe says: architecture, mixture of tasks, optimisation, checkpoints.

The files are read by :mod:`circuitdb.ingest`; training them is :mod:`circuitdb.models.train`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from circuitdb.circuit import digest

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class Stage(_Frozen):
    """Some steps of the training, and what is learned in them."""

    steps: Positive
    learning_rate: Weight = 1.5e-3
    tasks: dict[str, Weight] = {}
    """Task name → weight; a batch holds texts in these proportions."""
    recall: dict[str, Weight] = {}
    """Task name → weight, beside those of the tasks, of its texts in which a sentence begins
    again and goes on as before."""
    repeats: Repeats | None = None

    @model_validator(mode="after")
    def _something_to_learn(self) -> Stage:
        if not (self.tasks or self.recall or self.repeats):
            raise ValueError("a stage needs tasks, recall or repeats to learn from")
        return self


class Texts(_Frozen):
    """How the training texts are made. Only train splits are used."""

    vocabulary: dict[str, Positive] = {}
    """Word list of the tasks, in small letters → words kept of it; others are kept whole."""
    pool: Positive = 16384
    """Texts generated per task; a task drawn more often sees them again."""
    corrupted_share: Share = 0.4
    """Share of corrupted prompts among a task's: they teach what does not follow."""
    prefixed_share: Share = 0.5
    """Share of texts behind a few random words, so that positions are not learned by heart."""


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

    seeds: tuple[int, ...] = ()
    steps: tuple[Annotated[int, Field(ge=0)], ...] = ()


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

    @model_validator(mode="after")
    def _checkpoints_exist(self) -> TrainRecipe:
        late = [s for s in self.checkpoints.steps if s > self.steps]
        unknown = [s for s in self.checkpoints.seeds if s not in self.seeds]
        if late:
            raise ValueError(f"checkpoints {late} lie beyond the last step, {self.steps}")
        if unknown:
            raise ValueError(f"checkpoints for seeds {unknown}, which are not trained")
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
    def hash(self) -> str:
        """SHA-256 of all that decides the weights of a seed; the list of seeds does not."""
        loose = {"summary", "embedded", "seeds", "checkpoints"}
        return digest(self.model_dump(mode="json", exclude=loose))

    def kept_steps(self, seed: int) -> tuple[int, ...]:
        """The steps after which the weights of a seed are written, ascending; the last always."""
        early = self.checkpoints.steps if seed in self.checkpoints.seeds else ()
        return tuple(sorted({*early, self.steps}))
