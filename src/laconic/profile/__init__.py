"""What a model costs to store, to run and to train: a pure function of the model and an example input.

Counts are exact for the operators that torch runs. Traffic, energy and bounds are *modelled* (:mod:`.memory`,
:mod:`.energy` say how), and nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from laconic.core import JsonObject
from laconic.profile import backward
from laconic.profile.energy import Energy, Precision, bound_ms, energy_of
from laconic.profile.memory import dram_bytes, fused, peak_bytes
from laconic.profile.recording import Operator, Recording, layer_of, recorded
from laconic.profile.weights import Stored, nonzero, stored_weights

__all__ = ["CACHE_BYTES", "LayerProfile", "Profile", "bound_ms", "profile"]

CACHE_BYTES = 1_000_000
"""The cache between the arithmetic and DRAM, unless another is given: a core's own, on many processors."""


@dataclass(frozen=True)
class LayerProfile:
    """One module by itself, without the modules in it.

    ``params`` and ``nonzero`` count numbers, ``weights_bytes`` is what they take at ``bits`` each (of the weight).
    ``macs``: multiply-accumulates; ``flops``: operations, two for each MAC and the elementwise ones.
    ``activations_bytes``: what its operators write. ``traffic_bytes``: what they read and write, weights too;
    ``dram_bytes``: so much of it as is left when elementwise operators are fused into the layer before them and the
    cache holds what it can. ``backward_macs`` and ``backward_traffic_bytes``: of its
    gradients; ``kept_bytes``: the activations kept for them. ``energy_pj``: of a run, modelled. ``precision``: what it
    multiplies in.
    """

    name: str
    type: str
    params: int
    nonzero: int
    bits: float
    weights_bytes: int
    macs: int
    flops: int
    activations_bytes: int
    traffic_bytes: int
    dram_bytes: int
    backward_macs: int
    backward_traffic_bytes: int
    kept_bytes: int
    energy_pj: float
    precision: Precision

    @property
    def intensity(self) -> float:
        """Operations per byte of DRAM traffic; infinite where there is none."""
        return self.flops / self.dram_bytes if self.dram_bytes else float("inf")


@dataclass(frozen=True)
class Profile:
    """The whole model on one sample; see :class:`LayerProfile` for the names.

    ``size_bytes``: parameters and buffers as torch holds them, each tensor once; ``weights_bytes``: parameters at the
    bits that they are stored in. ``peak_activations_bytes``: the most that is alive at once. ``unsupported``: operators
    that nothing is known of, with the number of their calls: their MACs and operations are missing, so that the totals
    are *at least*; their traffic is not missing. ``layers``: the modules that hold parameters or run operators, in the
    order of definition.
    """

    params: int
    nonzero: int
    size_bytes: int
    weights_bytes: int
    macs: int
    flops: int
    activations_bytes: int
    peak_activations_bytes: int
    traffic_bytes: int
    dram_bytes: int
    cache_bytes: int
    backward_macs: int
    backward_traffic_bytes: int
    kept_bytes: int
    energy: Energy
    unsupported: Mapping[str, int]
    layers: tuple[LayerProfile, ...]

    def to_json(self) -> JsonObject:
        return asdict(self)


def profile(model: nn.Module, inputs: Tensor | Mapping[str, Tensor], cache_bytes: int = CACHE_BYTES) -> Profile:
    """Run ``model`` on the first sample of ``inputs`` (axis 0 is the sample) and count.

    Of named inputs, one goes by position, several by keyword.
    """
    named = {"": inputs} if isinstance(inputs, Tensor) else inputs
    named = {name: x[:1].clone() for name, x in named.items()}  # a slice would hold the memory of all samples
    stored = stored_weights(model)
    with recorded(model, stored, list(named.values())) as recorder:
        outputs = model(*named.values()) if len(named) == 1 else model(**named)
        leaves = [y for y in tree_leaves(outputs) if isinstance(y, Tensor)]
        recorder.found.outputs = {recorder.register(y, "made") for y in leaves}
    return _summed(model, recorder.found, stored, cache_bytes)


def _summed(model: nn.Module, found: Recording, stored: dict[str, Stored], cache_bytes: int) -> Profile:
    touched = [(found.bytes_of(op.reads), found.bytes_of(op.writes)) for op in found.operators]
    sizes = {i: value.size_bytes for i, value in enumerate(found.values) if value.kind != "weight"}
    run = fused(touched, [op.joined for op in found.operators], found.outputs)
    moved = dram_bytes(run, cache_bytes, found.inputs, found.outputs)
    rows = {name: _Sum(**asdict(weights)) for name, weights in _weights(model, stored).items()}
    spent = Energy()
    kept: set[int] = set()
    grown: set[int] = set()
    for op, (reads, writes), dram in zip(found.operators, touched, moved, strict=True):
        row = rows.setdefault(layer_of(op.layer), _Sum())
        row.macs += op.macs
        row.flops += 2 * op.macs + op.flops
        row.activations_bytes += sum(writes.values())
        row.traffic_bytes += sum(reads.values()) + sum(writes.values())
        row.dram_bytes += dram
        row.backward_macs += op.backward_macs
        row.backward_traffic_bytes += _backward_traffic(found, op, writes, grown)
        new = [value for value in op.kept if value not in kept and found.values[value].kind != "weight"]
        row.kept_bytes += sum(found.values[value].size_bytes for value in new)
        kept.update(new)
        precision = _precision(found, op)
        if op.macs:
            row.precision = precision
        energy = energy_of(op.macs, op.flops, sum(reads.values()) + sum(writes.values()), dram, precision)
        row.energy_pj += energy.total_pj
        spent += energy
    layers = tuple(
        LayerProfile(name=name, type=_type(module), **asdict(rows[name]))
        for name, module in model.named_modules()
        if name in rows
    )
    totals = {
        field.name: sum(getattr(layer, field.name) for layer in layers)
        for field in fields(Profile)
        if field.name in _Sum.__dataclass_fields__
    }
    return Profile(
        **totals,
        size_bytes=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        peak_activations_bytes=peak_bytes(touched, sizes, found.inputs, found.outputs),
        cache_bytes=cache_bytes,
        energy=spent,
        unsupported=dict(found.unknown),
        layers=layers,
    )


@dataclass
class _Weights:
    """What a layer stores."""

    params: int = 0
    nonzero: int = 0
    bits: float = 0.0
    weights_bytes: int = 0


@dataclass
class _Sum(_Weights):
    """A layer's row while it is added up."""

    macs: int = 0
    flops: int = 0
    activations_bytes: int = 0
    traffic_bytes: int = 0
    dram_bytes: int = 0
    backward_macs: int = 0
    backward_traffic_bytes: int = 0
    kept_bytes: int = 0
    energy_pj: float = 0.0
    precision: Precision = "f32"


def _weights(model: nn.Module, stored: dict[str, Stored]) -> dict[str, _Weights]:
    """What each module stores itself; what a parametrization holds is its layer's weight."""
    rows: dict[str, _Weights] = {}
    for path, tensor in model.named_parameters():
        name = layer_of(path.rpartition(".")[0])
        row = rows.setdefault(name, _Weights())
        row.params += tensor.numel()
        if "parametrizations.weight." in path:
            continue
        row.nonzero += nonzero(tensor)
        row.bits = max(row.bits, 8.0 * tensor.element_size()) if tensor.dim() > 1 or not row.bits else row.bits
        row.weights_bytes += tensor.numel() * tensor.element_size()
    for name, weight in stored.items():
        row = rows.setdefault(name, _Weights())
        row.nonzero += weight.nonzero
        row.bits = weight.bits
        row.weights_bytes += -int(-weight.elements * weight.bits // 8)
    return rows


def _type(module: nn.Module) -> str:
    """The class's name, as it was before a parametrization made a subclass of it."""
    return type(module).__name__.removeprefix("Parametrized")


def _precision(found: Recording, op: Operator) -> Precision:
    """What an operator computes in: the widest of its operands."""
    bits = max((found.values[value].item_bits for value in op.operands), default=32)
    return "int8" if bits <= 8 else "f16" if bits <= 16 else "f32"


def _backward_traffic(found: Recording, op: Operator, writes: dict[int, int], grown: set[int]) -> int:
    """The bytes that an operator's gradients read and write, each once and without a cache.

    Read: the gradient of what it wrote, and what it kept. Written: a gradient of the size of each value that has one;
    where a value had a gradient from another reader already, both are read and their sum is written. A sum's gradient
    is its output's, as it is.
    """
    if not op.trained:
        return 0
    given = found.bytes_of(op.trained)
    again = sum(2 * size for value, size in given.items() if value in grown)
    grown.update(given)
    if op.name in backward.PASSES:
        return again
    read = sum(writes.values()) + sum(found.bytes_of(op.kept).values())
    return read + sum(given.values()) + again
