"""How labels of channels (:mod:`.labels`) travel through each torch function: one function per kind, one plain table.

A rule is given the trail and the call, and answers with labels of the shape of each float that the call gave. Axis 1 is
the channel of convolutions, pooling and most norms, the last one that of linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from laconic.steps.prune.labels import Trail

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
PRODUCT = "its channels are multiplied with others', as in attention: PruneHeads removes whole heads"
SPREAD = "it is spread over channels"
UNKNOWN = "{} is not known here"
FIRST = 16
"""The first label; lower numbers are what padding and filling bring in."""


@dataclass(frozen=True)
class Called:
    """One call: the function and its name, the module that made it, its arguments, what it gave."""

    func: Callable[..., Any]
    name: str
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def take(self, position: int, *names: str) -> Any:
        """An argument by position or by one of its names."""
        if position < len(self.args):
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)

    def floats(self) -> list[Tensor]:
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]

    def results(self) -> list[Tensor]:
        return [y for y in tree_leaves(self.result) if isinstance(y, Tensor) and y.is_floating_point()]


Rule = Callable[["Trail", Called], list[Tensor]]


# ------------------------------------------------------------------------------------------------------------ products


def _weight(trail: Trail, call: Called, given: Tensor) -> Tensor:
    """The parameter that a layer's weight is: where it was computed from one of its shape, that one."""
    stored = getattr(call.module, "weight", None)
    if not trail.is_leaf(given) and isinstance(stored, Tensor) and stored.shape == given.shape:
        return stored
    return given


def convolution(trail: Trail, call: Called) -> list[Tensor]:
    """The columns j of all groups go together, and so do the rows j: groups stay equally wide."""
    x, weight, bias = call.take(0, "input"), call.take(1, "weight"), call.take(2, "bias")
    computed = not trail.is_leaf(weight)
    weight, groups = _weight(trail, call, weight), call.take(6, "groups") or 1
    read = _read(trail, trail.of(x), 1)
    out = trail.axis(weight, 0, "gives")  # o
    for gain in call.module.parameters(recurse=False) if computed and call.module is not None else ():
        if gain.numel() == len(gain) == len(out) and gain.dim() > 1:
            trail.tie(trail.axis(gain, 0, "passes"), out)
    rows = out.reshape(groups, -1)  # g o/g
    if weight.shape[1] == 1 and groups > 1:
        trail.tie(rows, rows[:, :1] if read is None else read[:, None])
    else:
        trail.tie(rows, rows[:1])
        if read is not None:
            trail.tie(read.reshape(groups, -1), trail.axis(weight, 1, "reads"))
    return _given(trail, call, out, bias, 1)


def transposed(trail: Trail, call: Called) -> list[Tensor]:
    x, weight, bias = call.take(0, "input"), call.take(1, "weight"), call.take(2, "bias")
    labels = trail.of(x)
    if (call.take(6, "groups") or 1) > 1:
        return fixed(trail, call, UNKNOWN.format("a transposed convolution in groups"))
    read = _read(trail, labels, 1)
    if read is not None:
        trail.tie(read, trail.axis(weight, 0, "reads"))
    return _given(trail, call, trail.axis(weight, 1, "gives"), bias, 1)


def linear(trail: Trail, call: Called) -> list[Tensor]:
    x, weight, bias = call.take(0, "input"), call.take(1, "weight"), call.take(2, "bias")
    return _linear(trail, call, x, _weight(trail, call, weight), bias, (1, 0))


def _linear(
    trail: Trail, call: Called, x: Tensor, weight: Tensor, bias: Tensor | None, axes: tuple[int, int]
) -> list[Tensor]:
    """``axes`` of the weight: the one that reads, the one that gives."""
    labels = trail.of(x)
    if _only_passes(labels, -1):  # over places, as in a mixer
        return [labels[..., :1].expand(call.result.shape)]
    read = _read(trail, labels, -1)
    if read is not None:
        trail.tie(read, trail.axis(weight, axes[0], "reads"))
    return _given(trail, call, trail.axis(weight, axes[1], "gives"), bias, -1)


def product(trail: Trail, call: Called) -> list[Tensor]:
    """x @ W with a parameter W is a linear layer; activations times activations fix the channels of both."""
    x, weight = call.take(0, "input"), call.take(1, "other", "mat2")
    if isinstance(weight, Tensor) and trail.is_leaf(weight) and weight.dim() == 2 and call.name != "rmatmul":
        return _linear(trail, call, x, weight, None, (0, 1))
    return fixed(trail, call, PRODUCT)


def sum_and_product(trail: Trail, call: Called) -> list[Tensor]:
    bias, x, weight = call.take(0, "input"), call.take(1, "mat1"), call.take(2, "mat2")
    if trail.is_leaf(weight) and weight.dim() == 2:
        return _linear(trail, call, x, weight, bias, (0, 1))
    return fixed(trail, call, PRODUCT)


def embedding(trail: Trail, call: Called) -> list[Tensor]:
    weight = next(x for x in call.floats() if x.dim() == 2)
    return _given(trail, call, trail.axis(weight, 1, "passes"), None, -1)


def _read(trail: Trail, labels: Tensor, dim: int) -> Tensor | None:
    """The label of each place of the axis that a layer reads."""
    return trail.along(labels, dim) if bool((labels > 0).any()) else None


def _only_passes(labels: Tensor, dim: int) -> bool:
    """Whether channels lie along other axes than ``dim``."""
    if labels.shape[dim] == 1 or not bool((labels > 0).any()):
        return False
    flat = labels.movedim(dim, -1)
    return bool((flat == flat[..., :1]).all()) and bool((flat != flat.reshape(-1)[0]).any())


def _given(trail: Trail, call: Called, rows: Tensor, bias: Tensor | None, dim: int) -> list[Tensor]:
    result = call.result
    if bias is not None and trail.is_leaf(bias) and bias.dim() == 1:
        trail.tie(trail.axis(bias, 0, "passes"), rows)
    shape = [1] * result.dim()
    shape[dim] = len(rows)
    return [rows.reshape(shape).expand(result.shape)]


# --------------------------------------------------------------------------------------------------------------- norms


def batch_norm(trail: Trail, call: Called) -> list[Tensor]:
    """And instance norm, and PReLU: each parameter belongs to axis 1."""
    x = call.args[0]
    labels = trail.of(x)
    for other in call.floats()[1:]:
        if other.dim() == 1 and len(other) > 1 and x.dim() > 1 and len(other) == x.shape[1]:
            trail.tie(labels, trail.of(other).reshape(-1, *[1] * (x.dim() - 2)))
    return [labels]


def layer_norm(trail: Trail, call: Called) -> list[Tensor]:
    labels = trail.of(call.args[0])
    for other in call.floats()[1:]:
        trail.tie(labels, trail.of(other))
    return [labels]


def group_norm(trail: Trail, call: Called) -> list[Tensor]:
    """The channels j of all groups go together: groups stay equally wide."""
    labels, groups = trail.of(call.args[0]), call.take(1, "num_groups")
    if bool((labels > 0).any()):
        rows = trail.along(labels, 1).reshape(groups, -1)
        trail.tie(rows, rows[:1])
    return batch_norm(trail, call)


# ------------------------------------------------------------------------------------------------- moves and reductions


def move(trail: Trail, call: Called) -> list[Tensor]:
    """What only moves numbers moves their labels; what padding and filling bring in has none."""
    found = tree_leaves(call.func(*trail.swapped(call.args), **trail.swapped(call.kwargs)))
    return [
        y if bool(((y == 0) | (y >= FIRST)).all()) else torch.where(y.isfinite() & (y >= FIRST), y, 0.0) for y in found
    ]


def same(trail: Trail, call: Called) -> list[Tensor]:
    """Another type or place."""
    return [trail.of(call.args[0])]


def nothing(trail: Trail, call: Called) -> list[Tensor]:
    """Numbers that are nobody's."""
    return [torch.zeros(y.shape, dtype=torch.float64) for y in call.results()]


def halves(trail: Trail, call: Called) -> list[Tensor]:
    """A gated linear unit: one half weighs the other."""
    dim = call.take(1, "dim")
    gated, gate = trail.of(call.args[0]).chunk(2, -1 if dim is None else dim)
    trail.tie(gated, gate)
    return [gated]


def reduction(trail: Trail, call: Called) -> list[Tensor]:
    """What is reduced to one number is of one channel."""
    x = call.args[0]
    labels = trail.of(x)
    wanted = call.take(2 if call.name in _NORMS else 1, "dim", "axis")
    if isinstance(wanted, Tensor):
        return elementwise(trail, call)
    dims = [wanted] if type(wanted) is int else list(wanted) if isinstance(wanted, Sequence) and wanted else None
    dims = [d % x.dim() for d in (dims if dims is not None else range(x.dim()))]
    first = labels.amax(dims, keepdim=True)
    trail.tie(labels, first)
    return [first.reshape(y.shape) for y in call.results()]


def space(trail: Trail, call: Called) -> list[Tensor]:
    """Pooling and resizing: axes behind the channels."""
    labels = trail.of(call.args[0])
    dims = 3 if call.name.endswith("3d") else 1 if call.name.endswith("1d") else 2
    if call.name == "interpolate":
        dims = call.args[0].dim() - 2
    first = labels.amax(list(range(-dims, 0)), keepdim=True)
    trail.tie(labels, first)
    return [first.expand(y.shape) for y in call.results()]


def elementwise(trail: Trail, call: Called) -> list[Tensor]:
    """Values that meet are of one channel. One that is spread over several channels (a map that weighs all of them)
    belongs to none, and stays."""
    (result,) = call.results()
    found = torch.zeros(result.shape, dtype=torch.float64)
    narrow = torch.zeros(result.dim(), dtype=torch.bool)
    for x in call.floats():
        labels = trail.of(x)
        if not bool((labels > 0).any()):
            continue
        shape = (*[1] * (result.dim() - x.dim()), *x.shape)
        spread = torch.tensor([a != b for a, b in zip(shape, result.shape, strict=True)], dtype=torch.bool)
        wide = labels.expand(result.shape)
        if _is_spread(labels, spread, found):
            trail.fix(labels, SPREAD)
            continue
        if _is_spread(found, narrow, wide):
            trail.fix(found, SPREAD)
            found, narrow = wide, spread
            continue
        trail.tie(found, wide)
        narrow = spread if not bool((found > 0).any()) else narrow & spread
        found = torch.where(found > 0, found, wide)
    return [found]


def _is_spread(labels: Tensor, spread: Tensor, other: Tensor) -> bool:
    """Whether ``labels``, all of one channel, lie over several channels of ``other`` along the axes ``spread``."""
    return len(torch.unique(labels[labels > 0])) == 1 and any(
        bool((other != other.narrow(int(d), 0, 1)).any()) for d in spread.nonzero().flatten()
    )


def fixed(trail: Trail, call: Called, reason: str) -> list[Tensor]:
    for x in call.floats():
        trail.fix(trail.of(x), reason)
    return nothing(trail, call)


def attention(trail: Trail, call: Called) -> list[Tensor]:
    return fixed(trail, call, PRODUCT)


def unknown(trail: Trail, call: Called) -> list[Tensor]:
    """An operator that is in no table: elementwise where its result has the shape of what it is given."""
    results, shapes = call.results(), [x.shape for x in call.floats()]
    try:
        whole = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    except RuntimeError:
        whole = torch.Size()
    if len(results) == 1 and results[0].shape == whole:
        return elementwise(trail, call)
    return fixed(trail, call, UNKNOWN.format(call.name))


_NORMS = ("norm", "vector_norm", "linalg_norm", "linalg_vector_norm")
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed),
    "linear": linear,
    **dict.fromkeys(("matmul", "rmatmul", "mm"), product),
    "addmm": sum_and_product,
    **dict.fromkeys(("bmm", "baddbmm", "einsum", "scaled_dot_product_attention", "cdist", "bilinear"), attention),
    "embedding": embedding,
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    **dict.fromkeys(
        (
            *("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze", "contiguous"),
            *("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "get", "detach", "clone"),
            *("getitem", "select", "narrow", "index_select", "gather", "take_along_dim", "chunk", "split", "unbind"),
            *("split_with_sizes", "tensor_split", "cat", "concat", "concatenate", "stack", "roll", "flip", "rot90"),
            *("pad", "expand", "expand_as", "repeat", "tile", "repeat_interleave", "masked_fill", "unfold"),
            *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "broadcast_to"),
        ),
        move,
    ),
    **dict.fromkeys(("to", "float", "type", "type_as", "cpu", "requires_grad"), same),
    **dict.fromkeys(
        (
            "new_zeros",
            "new_ones",
            "new_full",
            "new_empty",
            "new_tensor",
            "zeros_like",
            "ones_like",
            "full_like",
            "empty_like",
            "rand_like",
            "randn_like",
        ),
        nothing,
    ),
    "glu": halves,
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "median", *_NORMS), reduction
    ),
    **{f"{pool}{n}d": space for pool in _POOLS for n in (1, 2, 3)},
    **dict.fromkeys(("interpolate", "upsample"), space),
}
"""By the function's name, without underscores: ``add_`` and ``__add__`` are ``add``."""
