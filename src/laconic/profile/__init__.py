"""What a model costs to store and to run: a pure function of the model and an example input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from laconic.core import JsonObject
from laconic.profile.counting import counted, layer_of

__all__ = ["LayerProfile", "Profile", "profile"]


@dataclass(frozen=True)
class LayerProfile:
    """One module by itself, without the modules in it. ``activations_bytes``: what its own operators write."""

    name: str
    type: str
    params: int
    macs: int
    activations_bytes: int


@dataclass(frozen=True)
class Profile:
    """The whole model on one sample.

    ``params`` counts parameters, ``size_bytes`` the bytes of parameters and buffers; each tensor once. ``macs``:
    multiply-accumulates, one fused multiply-add being one; elementwise operators, normalisation, pooling and data
    movement count none. ``activations_bytes``: the sum over all operators of the bytes that they write; a view writes
    none. ``unsupported``: operators that nothing is known of, with the number of their calls; their MACs are missing
    from the totals. ``layers``: the modules that hold parameters or run operators, in the order of definition.
    """

    params: int
    size_bytes: int
    macs: int
    activations_bytes: int
    unsupported: Mapping[str, int]
    layers: tuple[LayerProfile, ...]

    def to_json(self) -> JsonObject:
        return asdict(self)


def profile(model: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Profile:
    """Run ``model`` on the first sample of ``inputs`` (axis 0 is the sample) and count.

    Of named inputs, one goes by position, several by keyword.
    """
    named = {"": inputs[:1]} if isinstance(inputs, Tensor) else {name: x[:1] for name, x in inputs.items()}
    with counted(model) as count:
        if len(named) == 1:
            model(*named.values())
        else:
            model(**named)
    params = _params_by_layer(model)
    return Profile(
        params=params.total(),
        size_bytes=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        macs=count.macs.total(),
        activations_bytes=count.written_bytes.total(),
        unsupported=dict(count.unknown),
        layers=tuple(
            LayerProfile(name, type(module).__name__, params[name], count.macs[name], count.written_bytes[name])
            for name, module in model.named_modules()
            if params[name] or count.macs[name] or count.written_bytes[name]
        ),
    )


def _params_by_layer(model: nn.Module) -> Counter[str]:
    """How many parameters each module holds itself; what a parametrization holds is its layer's."""
    params: Counter[str] = Counter()
    for path, parameter in model.named_parameters():
        params[layer_of(path.rpartition(".")[0])] += parameter.numel()
    return params
