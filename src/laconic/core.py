"""The nouns of laconic.

A candidate is a :class:`Recipe` of steps. A :class:`Step` maps a model to a new model and :data:`Facts`. A number is a
:class:`Measurement` taken on the deployed file through a :data:`Predictor`. Per-sample records (:class:`Metric`) make
every statistic possible. The ledger remembers every :class:`Trial`.

Only the standard library is imported here; numpy appears in annotations alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from laconic.errors import RecipeError, TargetError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]
else:
    Array = Any  # numpy is imported by those who touch arrays

JsonObject = dict[str, Any]
Arrays = Mapping[str, Array]
"""Named arrays; axis 0 is the sample in each of them."""
Predictor = Callable[[Arrays], dict[str, Array]]
"""A deployed file, ready to run: any number of samples in, as many out (it chunks and pads to its own batch)."""
Facts = dict[str, Any]
"""What a step did, as JSON: with the weights it rebuilds the model (:meth:`Step.restore`)."""


def digest(value: object, length: int = 16) -> str:
    """The first ``length`` hex digits of the SHA-256 of ``value`` written as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Batch:
    """Some samples, ready for the model: ``inputs`` as the model takes them, ``targets`` or None without labels."""

    inputs: dict[str, Array]
    targets: Array | None


class Split(Protocol):
    """A fixed, ordered set of samples read by index: the same index gives the same sample, always."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Batch: ...


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a model's input; stated once, used in calibration, evaluation and ``run``.

    In this order: convert to ``channels``; resize (``resize`` an int: the shorter side; a pair: height, width;
    ``interpolation``); crop the centre (``crop``: height, width); then ``(pixel / divide - mean) / std`` per channel,
    with pixels 0..255; then ``layout``.
    """

    channels: Literal["RGB", "BGR", "L"] = "RGB"
    resize: int | tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    crop: tuple[int, int] | None = None
    divide: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC", "flat"] = "NCHW"

    def to_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, stated: JsonObject) -> Preprocess:
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in stated.items()}
        return cls(**values)


@dataclass(frozen=True)
class Metric:
    """How outputs are judged: one record per sample, in 0..1, higher is better, and an aggregate of records.

    ``records(outputs, targets) -> (n,)``; ``decide(outputs) -> (n,)`` is what the outputs amount to (the class), used
    as target where there are no labels. ``binary`` says that records are 0 or 1 (the exact paired test applies).
    ``chance`` is the score of guessing, or None where it is unknown.
    """

    name: str
    records: Callable[[Arrays, Array], Array]
    decide: Callable[[Arrays], Array]
    aggregate: Callable[[Array], float]
    binary: bool
    chance: float | None = None


@dataclass(frozen=True)
class Task:
    """What the model is for: three disjoint splits, a metric, and a loss where training is allowed.

    ``train`` gives calibration (its first ``calibration`` samples) and, if ``trainable``, fine-tuning; ``search``
    chooses; ``holdout`` is opened once, for the certificate. ``loss(outputs, targets)`` takes and returns torch
    tensors; ``augment(inputs, generator)`` gives what named training inputs (tensors on any device) are turned into
    before each step of training, and nowhere else. ``provenance`` is JSON: where the data came from, the sizes of the
    splits, what was left out.
    """

    name: str
    metric: Metric
    train: Split
    search: Split
    holdout: Split
    loss: Callable[[Any, Any], Any] | None
    trainable: bool
    fingerprint: str
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    calibration: int = 128
    augment: Callable[[Any, Any], Any] | None = None
    provenance: JsonObject = field(default_factory=dict)

    def calibration_batch(self) -> Batch:
        """The calibration samples, all at once."""
        return self.train.read(range(min(self.calibration, len(self.train))))


# -------------------------------------------------------------------------------------------------------------- target


@dataclass(frozen=True)
class Target:
    """Where the model runs: ``runtime:device,threads=1,batch=1``."""

    runtime: str
    device: str = "cpu"
    threads: int = 1
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.runtime}:{self.device},threads={self.threads},batch={self.batch}"

    @classmethod
    def parse(cls, text: str) -> Target:
        place, *options = text.split(",")
        runtime, _, device = place.partition(":")
        values: dict[str, int] = {}
        for option in options:
            name, _, value = option.partition("=")
            if name not in ("threads", "batch") or not value.isdecimal() or int(value) < 1:
                raise TargetError(
                    "a target's option cannot be read", got=repr(option), wanted="threads=N or batch=N, N at least 1"
                )
            values[name] = int(value)
        if not runtime:
            raise TargetError("a target without a runtime", got=repr(text), wanted="onnxruntime:cpu,threads=1,batch=1")
        return cls(runtime, device or "cpu", **values)


@dataclass(frozen=True)
class Width:
    """What weights of some number of bits take in a file: ``bits`` each, ``layer_bytes`` for a layer that has them, and
    ``once_bytes`` where any layer has."""

    bits: float
    layer_bytes: int = 0
    once_bytes: int = 0


@dataclass(frozen=True)
class Traits:
    """What is fast on a target, as plain data; each runtime's file states its own.

    ``activation``: the integer type that its kernels take; ``symmetric``: without a zero point. ``weight_bits``: 7
    where products of u8 and s8 saturate. ``integer_operators``: the operators with integer kernels (names of
    :mod:`laconic.surgery`'s calls). ``float_output``: a final linear layer may give float straight from integers;
    ``inputs_only``: every operator may, so that quantizers belong in front of operators, and an addition is fused to
    the layer that gives one of its inputs. ``weight_kernels``: the widths in bits of the weights that its linear layers
    read as they are stored. ``channel_multiple``: channel counts that its kernels like. ``precisions``: float types
    that it computes in. ``widths``: what its files store integer weights in, by the bits of their codes; those that
    make no file smaller are missing.
    """

    activation: Literal["uint8", "int8"] = "uint8"
    symmetric: bool = False
    weight_bits: int = 8
    integer_operators: frozenset[str] = frozenset()
    float_output: bool = False
    inputs_only: bool = False
    weight_kernels: frozenset[int] = frozenset()
    channel_multiple: int = 1
    precisions: tuple[str, ...] = ("f32",)
    widths: Mapping[int, Width] = field(default_factory=lambda: {8: Width(8.0)})


# --------------------------------------------------------------------------------------------------- steps and recipes


@dataclass(frozen=True)
class Context:
    """What a step may know of the world, as plain data and callables.

    ``keep``: globs of layers to leave alone. ``reference``: the original model, inputs to outputs, as a teacher.
    ``progress(text, fraction)``: called during work longer than a second or two.
    """

    traits: Traits
    seed: int = 0
    keep: tuple[str, ...] = ()
    reference: Callable[[Any], Any] | None = None
    progress: Callable[[str, float], None] = lambda text, fraction: None


@runtime_checkable
class Step(Protocol):
    """One technique with its settings: a frozen dataclass whose fields are JSON.

    ``version`` rises whenever the step's result changes for the same settings: it is part of a trial's key.
    """

    version: ClassVar[int]

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        """The changed model (the argument may be changed in place: it is already a copy) and what was done."""
        ...

    def restore(self, model: Any, facts: Facts) -> Any:
        """Rebuild from ``facts``, without data, the structure that the step gave; weights are loaded afterwards."""
        ...


@dataclass(frozen=True)
class Recipe:
    """A tuple of steps: this is what a candidate is.

    >>> Recipe().key == Recipe(()).key
    True
    """

    steps: tuple[Step, ...] = ()

    def apply(self, model: Any, task: Task, context: Context) -> tuple[Any, list[Facts]]:
        """Run the steps on a copy of ``model`` (the one copy; ``model`` itself is never changed)."""
        model = copy.deepcopy(model)
        facts: list[Facts] = []
        for step in self.steps:
            model, fact = step(model, task, context)
            facts.append(fact)
        return model, facts

    def restore(self, model: Any, facts: Sequence[Facts]) -> Any:
        """The structure that :meth:`apply` gave, from its facts; load the weights into it afterwards."""
        model = copy.deepcopy(model)
        for step, fact in zip(self.steps, facts, strict=True):
            model = step.restore(model, fact)
        return model

    def to_json(self) -> list[JsonObject]:
        """One object per step: its name under ``step``, then the settings that differ from the defaults."""
        return [{"step": type(step).__name__, **settings(step)} for step in self.steps]

    @property
    def key(self) -> str:
        """A hash of the steps, their settings and their versions."""
        return digest([[type(step).__name__, step.version, settings(step, every=True)] for step in self.steps])

    def __str__(self) -> str:
        return describe(self.to_json())

    @classmethod
    def parse(cls, rows: object, table: Mapping[str, type[Step]]) -> Recipe:
        """A recipe from :meth:`to_json`'s form (or the same read from YAML); ``table`` maps names to steps."""
        if not isinstance(rows, list):
            raise RecipeError("a recipe is a list of steps", got=type(rows).__name__)
        return cls(tuple(_parse_step(row, table) for row in rows))


_LAYERS_SHOWN = 3


def settings(step: Step, *, every: bool = False) -> JsonObject:
    """A step's settings as JSON: those that differ from the defaults, or ``every`` one."""
    values = json.loads(json.dumps(asdict(step)))  # type: ignore[call-overload]  # steps are dataclasses
    made = fields(step)  # type: ignore[arg-type]
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in made}
    plain = json.loads(json.dumps(defaults, default=lambda value: None))
    return {name: value for name, value in values.items() if every or value != plain[name]}


def describe(rows: Sequence[JsonObject]) -> str:
    """A recipe, as :meth:`Recipe.to_json` gives it, in a line; what is set per layer is named for the first layers.

    >>> describe([{"step": "PruneChannels", "layers": {"a": 0.5, "b": 0.25}}, {"step": "Quantize"}])
    'PruneChannels(a 0.5, b 0.25) + Quantize'
    """
    return " + ".join(map(_described, rows)) or "the original"


def _described(row: JsonObject) -> str:
    settings = [_short(name, value) for name, value in row.items() if name != "step"]
    return str(row["step"]) + (f"({', '.join(settings)})" if settings else "")


def _short(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"{name} {_number(value)}"
    shown = [f"{key} {_number(entry)}" for key, entry in list(value.items())[:_LAYERS_SHOWN]]
    more = [f"{len(value) - _LAYERS_SHOWN} more {name}"] if len(value) > _LAYERS_SHOWN else []
    return ", ".join(shown + more)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _parse_step(row: object, table: Mapping[str, type[Step]]) -> Step:
    if not isinstance(row, dict) or "step" not in row:
        raise RecipeError("a step without a name", got=repr(row), wanted="a mapping with the key 'step'")
    settings = {name: value for name, value in row.items() if name != "step"}
    kind = table.get(row["step"]) if isinstance(row["step"], str) else None
    if kind is None:
        raise RecipeError("unknown step", got=repr(row["step"]), wanted=f"one of {', '.join(sorted(table))}")
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise RecipeError(f"unknown setting of {row['step']}", got=repr(name), wanted=f"one of {', '.join(known)}")
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    return kind(**frozen)


# ------------------------------------------------------------------------------------------------ measurements, trials


@dataclass(frozen=True)
class Measurement:
    """A quantity with its interval: ``low``..``high`` at 95 % where ``n`` > 1; *measured* or *modelled*."""

    quantity: str
    unit: str
    value: float
    low: float
    high: float
    n: int
    basis: Literal["measured", "modelled"]

    def to_json(self) -> JsonObject:
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """One row of the ledger: a recipe on a target, what was found, or why it failed.

    ``measurements`` by name: ``file_bytes, params, macs, score`` (on ``search``), ``latency`` (ms), ``speedup``
    (baseline over candidate, paired), ``packed_bytes`` (of the ``.lac``, where size is minimised). ``records`` are the
    candidate's on ``search``, in order (shorter if it was rejected early); ``rejected`` says why it cannot win,
    ``error`` why it failed. ``only_stored``: all that was done is that weights of few bits, computed in float32, are
    stored short; no speed comes from that.
    """

    key: str
    recipe: Recipe
    target: Target
    facts: tuple[Facts, ...] = ()
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    records: tuple[float, ...] = ()
    rejected: str | None = None
    error: str | None = None
    seconds: float = 0.0
    only_stored: bool = False
