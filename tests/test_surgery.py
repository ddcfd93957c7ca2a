"""Looking into models: calls and values have stable names, whatever the code does; folding changes nothing."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.surgery import Graph, fold_batch_norm, matches, output_layers, trace, weighted_layers
from tests.networks import NETWORKS, inputs_of, lively, network, tensors


class Run(nn.Module):
    """A module whose forward is the given function of itself and its inputs."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def traced(model: nn.Module, *shape: int) -> Graph:
    return trace(model.eval(), {"x": torch.ones(shape or (2, 3, 8, 8))})


def of(family: str, graph: Graph) -> list[surgery.Call]:
    return [call for call in graph.calls if call.family == family]


# --------------------------------------------------------------------------------------------------------------- trace


def test_calls_values_and_keys() -> None:
    graph = traced(network("plain"))
    assert [(call.key, call.family) for call in graph.calls] == [
        ("conv1/conv2d#0", "conv"),
        ("bn1/batch_norm#0", "batch_norm"),
        ("/relu#0", "relu"),
        ("/max_pool2d#0", "max_pool"),
        ("conv2/conv2d#0", "conv"),
        ("bn2/batch_norm#0", "batch_norm"),
        ("/relu#1", "relu"),
        ("/max_pool2d#1", "max_pool"),
        ("/flatten#0", "reshape"),
        ("fc1/linear#0", "linear"),
        ("/relu#2", "relu"),
        ("fc2/linear#0", "linear"),
    ]
    assert graph.inputs == ("input/x",)
    assert graph.outputs == ("fc2/linear#0",)
    assert graph.calls[0].inputs == ("input/x",)
    chain = zip(graph.calls, graph.calls[1:], strict=False)
    assert all(after.inputs == before.outputs == (before.key,) for before, after in chain)
    assert graph.producer()["fc1/linear#0"].module == "fc1"
    assert [call.key for call in graph.consumers()["conv1/conv2d#0"]] == ["bn1/batch_norm#0"]


@pytest.mark.parametrize("name", NETWORKS)
def test_two_runs_and_a_copy_give_the_same_names(name: str) -> None:
    model = network(name)
    first = trace(model, tensors(inputs_of(name, 2)))
    assert trace(model, tensors(inputs_of(name, 3, seed=5))) == first
    assert trace(copy.deepcopy(model), tensors(inputs_of(name, 2))) == first
    made = [value for call in first.calls for value in call.outputs]
    assert len(made) == len(set(made)), "every value has a name of its own"
    assert {value for call in first.calls for value in call.inputs} <= {*made, *first.inputs}


def test_control_flow_is_followed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x)
        return torch.relu(x) if x.sum() > 0 else torch.tanh(x)

    layer = nn.Linear(4, 4)
    nn.init.ones_(layer.weight)
    graph = trace(Run(forward, layer=layer), {"x": torch.ones(2, 4)})
    assert [call.key for call in of("linear", graph)] == ["layer/linear#0", "layer/linear#1", "layer/linear#2"]
    assert graph.outputs == ("/relu#0",)
    assert trace(Run(forward, layer=layer), {"x": -100 * torch.ones(2, 4)}).outputs == ("/tanh#0",)


def test_in_place_operations_rename_the_tensor() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.layer(x)
        y += x
        self.relu(y)  # the result is not taken, the tensor is
        y.mul_(2.0)
        return y

    graph = trace(Run(forward, layer=nn.Linear(4, 4), relu=nn.ReLU(inplace=True)), {"x": torch.ones(2, 4)})
    assert [call.family for call in graph.calls] == ["linear", "add", "relu", "mul"]
    assert graph.calls[1].inputs == ("layer/linear#0", "input/x")
    assert graph.calls[2].inputs == graph.calls[1].outputs
    assert graph.calls[3].inputs == graph.calls[2].outputs
    assert graph.outputs == graph.calls[3].outputs


def test_tuples_give_several_values() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = x.chunk(3, 1)
        values, places = torch.max(x, 1)
        assert not places.is_floating_point()
        return torch.cat([c, a], 1), values + b[:, 0]

    graph = trace(Run(forward), {"x": torch.ones(2, 6)})
    chunk, top, *_ = graph.calls
    assert chunk.outputs == ("/chunk#0", "/chunk#0:1", "/chunk#0:2")
    assert top.outputs == ("/max#0",), "indices are no values"
    assert of("concat", graph)[0].inputs == ("/chunk#0:2", "/chunk#0")
    assert len(graph.outputs) == 2


def test_a_module_in_two_places_goes_by_its_first_name() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    graph = trace(model, {"x": torch.ones(2, 4)})
    assert [call.key for call in of("linear", graph)] == ["0/linear#0", "0/linear#1"]


def test_inputs_and_outputs_by_name() -> None:
    pair = network("pair")
    graph = trace(pair, tensors(inputs_of("pair", 2)))
    assert graph.inputs == ("input/image", "input/extra")
    assert len(graph.outputs) == 2
    outputs = surgery.call(pair, tensors(inputs_of("pair", 2)))
    assert list(outputs) == ["output_0", "output_1"]
    mapping = Run(lambda self, x: {"logits": x + 1, "note": "text", "features": x})
    assert list(surgery.call(mapping, {"x": torch.ones(1)})) == ["logits", "features"]
    assert list(surgery.call(nn.ReLU(), {"any": torch.ones(1)})) == ["output"]
    assert trace(mapping, {"x": torch.ones(1)}).outputs == ("/add#0", "input/x")


def test_what_is_not_float_is_no_value() -> None:
    graph = trace(Run(lambda self, x: x.argmax(1)), {"x": torch.ones(2, 3)})
    assert graph.calls == ()
    assert graph.outputs == ("",)


@pytest.mark.parametrize(
    ("function", "family", "bounds"),
    [
        (F.relu, "relu", (0, math.inf)),
        (nn.ReLU(), "relu", (0, math.inf)),
        (nn.ReLU(inplace=True), "relu", (0, math.inf)),
        (torch.relu, "relu", (0, math.inf)),
        (lambda x: x.relu_(), "relu", (0, math.inf)),
        (F.relu6, "clamp", (0, 6)),
        (nn.ReLU6(), "clamp", (0, 6)),
        (nn.ReLU6(inplace=True), "clamp", (0, 6)),
        (nn.Hardtanh(-2, 3), "clamp", (-2, 3)),
        (F.hardtanh, "clamp", (-1, 1)),
        (lambda x: F.hardtanh(x, 0.0, 4.0), "clamp", (0, 4)),
        (lambda x: F.hardtanh(x, max_val=2.5), "clamp", (-1, 2.5)),
        (lambda x: torch.clamp(x, 0, 6), "clamp", (0, 6)),
        (lambda x: x.clamp(min=0), "clamp", (0, math.inf)),
        (lambda x: x.clamp(max=1), "clamp", (-math.inf, 1)),
        (lambda x: x.clip(-1, 1), "clamp", (-1, 1)),
        (lambda x: x.clamp_(0, 2), "clamp", (0, 2)),
        (lambda x: x.clamp(min=torch.zeros(4)), "clamp", None),
        (F.leaky_relu, "leaky_relu", None),
        (torch.sigmoid, "sigmoid", None),
    ],
)
def test_bounds_of_activations(function: Any, family: str, bounds: tuple[float, float] | None) -> None:
    model = Run(lambda self, x: function(x + 0.0))
    call = trace(model, {"x": torch.ones(2, 4)}).calls[-1]
    assert (call.family, call.bounds) == (family, bounds)


@pytest.mark.parametrize(
    ("pad", "channels"),
    [((0, 1, 0, 1), False), ((1, 1), False), ((0, 0, 0, 0, 1, 1), True), ((0, 0, 0, 0, 0, 2), True)],
)
def test_padding_of_channels_is_told_from_padding_of_space(pad: tuple[int, ...], channels: bool) -> None:
    for model in (Run(lambda self, x: F.pad(x, pad)), Run(lambda self, x: F.pad(x, pad=pad))):
        (call,) = traced(model).calls
        assert (call.family, call.channel_pad) == ("pad", channels)


@pytest.mark.parametrize(
    ("options", "family"),
    [
        ({}, "pad"),
        ({"value": 0.0}, "pad"),
        ({"value": -math.inf}, "pad"),
        ({"mode": "reflect"}, "pad"),
        ({"value": 1.0}, "fill"),
        ({"mode": "constant", "value": -2}, "fill"),
    ],
)
def test_padding_with_a_number_is_another_family(options: dict[str, Any], family: str) -> None:
    assert traced(Run(lambda self, x: F.pad(x, (1, 1, 1, 1), **options))).calls[0].family == family


# ------------------------------------------------------------------------------------------------------------- watched


def test_a_handler_can_replace_results() -> None:
    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        return result * 0 + 7 if key == "0/linear#0" else result

    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with surgery.watched(model, handler):
        assert torch.equal(model(torch.ones(2, 3)), torch.full((2, 3), 7.0))
    assert not torch.equal(model(torch.ones(2, 3)), torch.full((2, 3), 7.0))


def test_nothing_stays_behind_even_after_an_error() -> None:
    seen: list[str] = []

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        seen.append(key)
        raise RuntimeError("no")

    hooks = nn.modules.module
    before = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    with pytest.raises(RuntimeError, match="^no$"), surgery.watched(model := nn.Linear(3, 3), handler):  # noqa: RUF043
        model(torch.ones(2, 3))
    count = len(seen)
    model(torch.ones(2, 3))
    assert len(seen) == count
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == before


def test_other_models_are_not_mixed_in() -> None:
    inner = nn.Linear(3, 3)
    graph = trace(Run(lambda self, x: inner(x)), {"x": torch.ones(1, 3)})
    assert graph.calls[0].module in ("", "run"), "a module that does not belong to the model has no name in it"


# ------------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize(
    ("name", "globs", "wanted"),
    [
        ("features.0.conv", ["features.*"], True),
        ("features.0.conv", ["features"], True),
        ("features.0.conv", ["features.0"], True),
        ("features.0.conv", ["*.conv"], True),
        ("features.0.conv", ["feature"], False),
        ("features.0.conv", ["features.1*", "*conv"], True),
        ("features.10.conv", ["features.1"], False),
        ("Head", ["head"], False),
        ("conv1", ["conv[12]"], True),
        ("conv1", [], False),
        ("conv1", ["conv1"], True),
    ],
)
def test_globs(name: str, globs: list[str], wanted: bool) -> None:
    assert matches(name, globs) is wanted


def test_a_module_is_put_in_its_place() -> None:
    model = network("residual")
    for name in ("head", "blocks.1.down.0", "blocks.0.bn1"):
        new = nn.Identity()
        surgery.set_module(model, name, new)
        assert model.get_submodule(name) is new
    with pytest.raises(AttributeError):
        surgery.set_module(model, "blocks.9.bn1", nn.Identity())


def test_weighted_layers_are_those_that_compute_as_their_class_does() -> None:
    class Mine(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    layers = {"conv": nn.Conv1d(2, 2, 1), "linear": nn.Linear(2, 2), "deep": nn.Sequential(nn.Conv3d(1, 1, 1))}
    others = {"mine": Mine(2, 2), "transposed": nn.ConvTranspose2d(2, 2, 1), "lazy": nn.LazyLinear(2)}
    model = Run(lambda self, x: x, **layers, **others, norm=nn.BatchNorm1d(2))
    assert list(weighted_layers(model)) == ["conv", "linear", "deep.0"]
    parametrize.register_parametrization(model.linear, "weight", nn.Identity())
    assert list(weighted_layers(model)) == ["conv", "linear", "deep.0"]


def test_a_bias_of_zeros() -> None:
    layer = nn.Conv2d(3, 5, 1, bias=False)
    x = torch.ones(1, 3, 2, 2)
    before = layer(x)
    surgery.give_bias(layer)
    assert isinstance(layer.bias, nn.Parameter)
    assert torch.equal(layer(x), before)
    first = layer.bias
    surgery.give_bias(layer)
    assert layer.bias is first


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("plain", {"fc2"}),
        ("residual", {"head"}),
        ("depthwise", {"head"}),
        ("pair", {"head", "conv", "side"}),
        ("tokens", {"head"}),
    ],
)
def test_output_layers(name: str, layers: set[str]) -> None:
    assert output_layers(trace(network(name), tensors(inputs_of(name, 2)))) == layers


def test_output_layers_through_additions_and_reshapes() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.cat([self.a(x) + self.b(x), torch.sigmoid(self.c(self.d(x)))], 1).reshape(-1)

    model = Run(forward, **{name: nn.Linear(4, 4) for name in "abcd"})
    assert output_layers(trace(model, {"x": torch.ones(2, 4)})) == {"a", "b", "c"}


# ------------------------------------------------------------------------------------------------------------- folding


def fold(model: nn.Module, x: Tensor) -> tuple[list[tuple[str, str]], float]:
    """What was folded, and by how much the outputs changed, relative to their size."""
    model = lively(model).eval()
    with torch.no_grad():
        before = surgery.call(model, {"x": x})
        found = fold_batch_norm(model, trace(model, {"x": x}))
        after = surgery.call(model, {"x": x})
    errors = [float((after[name] - y).abs().max() / y.abs().max()) for name, y in before.items()]
    return found, max(errors)


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), (4, 3, 8, 8)),
        (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 3, 8, 8)),
        (nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, affine=False), (4, 3, 8, 8)),
        (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, eps=0.1), (4, 3, 8, 8)),
        (nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), (4, 3, 8)),
        (nn.Conv3d(3, 6, 2, bias=False), nn.BatchNorm3d(6), (4, 3, 4, 4, 4)),
        (nn.Linear(5, 6), nn.BatchNorm1d(6), (4, 5)),
        (nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6, affine=False), (4, 5)),
        (nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6), (4, 3, 8, 8)),
    ],
)
def test_folding_is_exact(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm), nn.ReLU())
    found, error = fold(model, torch.randn(shape, generator=torch.Generator().manual_seed(3)))
    assert found == [("0", "1")]
    assert isinstance(model[1], nn.Identity)
    assert error < 1e-5


@pytest.mark.parametrize(
    ("name", "count"), [("plain", 2), ("residual", 8), ("depthwise", 3), ("concat", 2), ("mlp", 0), ("tokens", 0)]
)
def test_networks_are_folded_whole(name: str, count: int) -> None:
    model = network(name)
    with torch.no_grad():
        x = tensors(inputs_of(name, 4))
        before = surgery.call(model, x)["output"]
        folded = fold_batch_norm(model, trace(model, x))
        after = surgery.call(model, x)["output"]
    assert len(folded) == count
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def conv(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 1, **options)


def tied() -> nn.Module:
    model = Run(lambda self, x: self.norm(self.a(x)) + self.b(x), a=conv(), b=conv(), norm=nn.BatchNorm2d(3))
    model.b.weight = model.a.weight
    return model


NOT_TO_FOLD: dict[str, Callable[[], nn.Module]] = {
    "layer called twice": lambda: Run(lambda self, x: self.a(self.norm(self.a(x))), a=conv(), norm=nn.BatchNorm2d(3)),
    "norm called twice": lambda: Run(
        lambda self, x: self.norm(self.b(self.norm(self.a(x)))), a=conv(), b=conv(), norm=nn.BatchNorm2d(3)
    ),
    "another reader": lambda: Run(lambda self, x: self.norm(y := self.a(x)) + y, a=conv(), norm=nn.BatchNorm2d(3)),
    "an output as well": lambda: Run(lambda self, x: (self.norm(y := self.a(x)), y), a=conv(), norm=nn.BatchNorm2d(3)),
    "tied weights": tied,
    "relu between": lambda: Run(lambda self, x: self.norm(F.relu(self.a(x))), a=conv(), norm=nn.BatchNorm2d(3)),
    "norm first": lambda: Run(lambda self, x: self.a(self.norm(x)), a=conv(), norm=nn.BatchNorm2d(3)),
    "statistics of the batch": lambda: Run(
        lambda self, x: self.norm(self.a(x)), a=conv(), norm=nn.BatchNorm2d(3, track_running_stats=False)
    ),
    "parametrized": lambda: Run(
        lambda self, x: self.norm(self.a(x)), a=nn.utils.parametrizations.weight_norm(conv()), norm=nn.BatchNorm2d(3)
    ),
    "transposed": lambda: Run(
        lambda self, x: self.norm(self.a(x)), a=nn.ConvTranspose2d(3, 3, 1), norm=nn.BatchNorm2d(3)
    ),
    "instance norm": lambda: Run(
        lambda self, x: self.norm(self.a(x)), a=conv(), norm=nn.InstanceNorm2d(3, track_running_stats=True)
    ),
}


@pytest.mark.parametrize("name", NOT_TO_FOLD)
def test_what_must_not_be_folded(name: str) -> None:
    model = NOT_TO_FOLD[name]()
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if name != "statistics of the batch":
            lively(model)
        model.eval()
        before = surgery.call(model, {"x": x})
        assert fold_batch_norm(model, trace(model, {"x": x})) == []
        after = surgery.call(model, {"x": x})
    assert all(torch.equal(after[key], y) for key, y in before.items())


def test_norm_over_tokens_is_not_folded() -> None:
    model = Run(lambda self, x: self.norm(self.a(x)), a=nn.Linear(4, 5), norm=nn.BatchNorm1d(5))
    found, error = fold(model, torch.randn(3, 5, 4))
    assert found == []
    assert error == 0


def test_folding_leaves_the_weights_type() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    fold_batch_norm(model, traced(model))
    assert model[0].weight.dtype == model[0].bias.dtype == torch.float32
    assert model[0].weight.requires_grad
    assert Counter(name for name, _ in model.named_parameters()) == Counter(["0.weight", "0.bias"])
