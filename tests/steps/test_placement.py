"""Where quantizers go: what runs in integers has integers on every side, and nothing is rounded twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.core import Traits
from laconic.fake_quantize import Shared
from laconic.steps.quantize.placement import Placement, place
from laconic.surgery import Graph, fold_batch_norm, trace, weighted_layers
from tests.networks import INTEGER, NETWORKS, inputs_of, network, tensors

INF = (-math.inf, math.inf)
RELU = (0.0, math.inf)
WHOLE = Traits(integer_operators=INTEGER.integer_operators, float_output=False)


def placed(name: str, traits: Traits = INTEGER, without: tuple[str, ...] = ()) -> tuple[Graph, Placement]:
    model, inputs = network(name), tensors(inputs_of(name, 2))
    fold_batch_norm(model, trace(model, inputs))
    graph = trace(model, inputs)
    return graph, place(graph, [n for n in weighted_layers(model) if n not in without], traits)


def of(forward: Callable[[Any, Tensor], Any], *shape: int, **modules: nn.Module) -> Placement:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return forward(self, x)

    model = Model().eval()
    for name, module in modules.items():
        model.add_module(name, module)
    return place(trace(model, {"x": torch.ones(2, *shape)}), weighted_layers(model), INTEGER)


def test_a_chain_by_hand() -> None:
    _, found = placed("plain")
    assert found.groups == (
        (Shared(("input/x",)), INF),
        (Shared(("/relu#0",), ("/max_pool2d#0",)), RELU),
        (Shared(("/relu#1",), ("/flatten#0", "/max_pool2d#1")), RELU),
        (Shared(("/relu#2",)), RELU),
    )
    assert tuple(found.layers) == ("conv1", "conv2", "fc1", "fc2")
    assert found.fused == {
        "conv1/conv2d#0": "/relu#0",
        "conv2/conv2d#0": "/relu#1",
        "fc1/linear#0": "/relu#2",
        "fc2/linear#0": "fc2/linear#0",
    }


def test_the_output_is_quantized_where_the_target_cannot_give_float() -> None:
    _, found = placed("plain", WHOLE)
    assert (Shared(("fc2/linear#0",)), INF) in found.groups
    _, convolution = placed("depthwise", WHOLE)
    assert (Shared(("head/conv2d#0",)), INF) in convolution.groups


def test_a_convolution_of_one_place_gives_float_as_a_linear_layer_does() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.flatten(self.head(x), 1)

    def values(head: nn.Module, size: int) -> set[str]:
        return {value for shared, _ in of(forward, 4, size, size, head=head).groups for value in shared.active}

    assert values(nn.Conv2d(4, 2, 1), 1) == {"input/x"}
    assert values(nn.Conv2d(4, 2, 1), 2) == {"input/x", "head/conv2d#0"}, "a map"
    assert values(nn.Conv2d(4, 2, 1, padding=1), 1) == {"input/x", "head/conv2d#0"}, "a map of borders"
    assert values(nn.Conv2d(4, 2, 1, groups=2), 1) == {"input/x", "head/conv2d#0"}, "not all channels"


def test_padding_of_space_is_looked_through() -> None:
    _, found = placed("depthwise")
    values = {value for shared, _ in found.groups for value in (*shared.active, *shared.passive)}
    assert not [value for value in values if "pad" in value]
    assert ("input/x",) in [shared.active for shared, _ in found.groups]
    assert [bounds for shared, bounds in found.groups if "relu6" in shared.active[0]] == [(0.0, 6.0)] * 3


def test_a_layer_that_is_left_out() -> None:
    _, found = placed("plain", without=("conv2",))
    values = {value for shared, _ in found.groups for value in (*shared.active, *shared.passive)}
    assert tuple(found.layers) == ("conv1", "fc1", "fc2")
    assert "/max_pool2d#0" not in values, "what only the float layer reads stays as it is"
    assert "/relu#0" in values, "the layer before it still gives integers"


def test_joined_values_share() -> None:
    _, found = placed("concat")
    (joined,) = [shared for shared, _ in found.groups if any("cat" in value for value in shared.passive)]
    assert set(joined.active) == {"/relu#0", "/relu#1"}
    assert set(joined.passive) == {"/cat#0"}


def test_both_sides_of_an_addition() -> None:
    graph, found = placed("residual")
    index = {value: i for i, (shared, _) in enumerate(found.groups) for value in (*shared.active, *shared.passive)}
    (first, *_) = [call for call in graph.calls if call.family == "add"]
    assert first.inputs == ("blocks.0.conv2/conv2d#0", "stem.2/relu#0")
    assert len({index[value] for value in (*first.inputs, "blocks.0.relu/relu#1")}) == 3, "each its own scale"


@pytest.mark.parametrize("name", NETWORKS)
def test_integer_operators_have_integers_on_every_side(name: str) -> None:
    graph, found = placed(name, WHOLE)
    quantized = {value for shared, _ in found.groups for value in (*shared.active, *shared.passive)}
    readers = graph.consumers()
    for call in graph.calls:
        if call.family not in INTEGER.integer_operators:
            continue
        for value in call.inputs:
            producer = graph.producer().get(value)
            if producer is not None and producer.family == "pad" and not producer.channel_pad:
                value = producer.inputs[0]  # noqa: PLW2901
            assert value in quantized, (call.key, value)
        (output,) = call.outputs
        users = readers.get(output, [])
        fused = len(users) == 1 and users[0].family in ("relu", "clamp") and output not in graph.outputs
        output = users[0].outputs[0] if fused else output
        assert output in quantized, call.key


def test_linear_layers_give_float_to_what_reads_float() -> None:
    """A block of a transformer: its additions go to layer norms, its activation has no integer kernel."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x + self.second(nn.functional.gelu(self.first(self.norm(x))))
        return self.head(self.last(x).mean(1))  # type: ignore[no-any-return]

    modules = {"norm": nn.LayerNorm(4), "first": nn.Linear(4, 8), "second": nn.Linear(8, 4), "last": nn.LayerNorm(4)}
    found = of(forward, 3, 4, head=nn.Linear(4, 2), **modules)
    values = [value for shared, _ in found.groups for value in (*shared.active, *shared.passive)]
    assert values == ["norm/layer_norm#0", "/gelu#0", "/mean#0"]
    assert tuple(found.layers) == ("first", "second", "head")


def test_linear_layers_give_integers_to_what_reads_integers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x) + self.second(x)))  # type: ignore[no-any-return]

    layers = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), "last": nn.Linear(4, 2)}
    values = {value for shared, _ in of(forward, 4, **layers).groups for value in shared.active}
    assert values == {"input/x", "first/linear#0", "second/linear#0", "/relu#0"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_is_in_one_group_and_moves_stay_in_theirs(name: str) -> None:
    graph, found = placed(name)
    values = [value for shared, _ in found.groups for value in (*shared.active, *shared.passive)]
    assert len(values) == len(set(values))
    producer = graph.producer()
    for shared, _ in found.groups:
        assert shared.active, "somebody gives what is moved"
        for value in shared.passive:
            assert set(producer[value].inputs) <= {*shared.active, *shared.passive}


def test_nothing_runs_in_integers_without_integer_kernels() -> None:
    _, found = placed("plain", Traits())
    assert found == Placement((), {}, {})


def test_bounds_are_those_of_all_sources() -> None:
    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1), "c": nn.Conv2d(8, 4, 1)}
    both = of(lambda self, x: self.c(torch.cat([F.relu6(self.a(x)), F.relu(self.b(x))], 1)), 3, 4, 4, **layers)
    assert RELU in [bounds for shared, bounds in both.groups if len(shared.active) == 2]
    one = of(lambda self, x: self.c(torch.cat([F.relu6(self.a(x)), self.b(x)], 1)), 3, 4, 4, **layers)
    assert INF in [bounds for shared, bounds in one.groups if len(shared.active) == 2]


def test_an_activation_with_two_sources_of_its_input_is_not_fused() -> None:
    found = of(lambda self, x: F.relu(y := self.a(x)) + y, 3, 4, 4, a=nn.Conv2d(3, 3, 1))
    assert found.fused == {"a/conv2d#0": "a/conv2d#0"}
    shown = of(lambda self, x: (F.relu(y := self.a(x)), y), 3, 4, 4, a=nn.Conv2d(3, 3, 1))
    assert shown.fused == {"a/conv2d#0": "a/conv2d#0"}, "the value itself is an output"


def test_channels_padded_share_with_what_they_were() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.pad(F.relu(self.a(x)), (0, 0, 0, 0, 1, 1)))

    found = of(forward, 3, 4, 4, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(6, 2, 1))
    assert Shared(("/relu#0",), ("/pad#0",)) in [shared for shared, _ in found.groups]


def test_padding_with_a_number_is_no_move() -> None:
    """Its number need not lie within the range of what it pads."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.max_pool2d(F.pad(F.relu(self.a(x)), (1, 1, 1, 1), value=50.0), 2))

    found = of(forward, 3, 4, 4, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    assert Shared(("/max_pool2d#0",)) in [shared for shared, _ in found.groups]


def test_padding_with_minus_infinity_is_a_move() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(F.max_pool2d(F.pad(F.relu(self.a(x)), (1, 1, 1, 1), value=-math.inf), 2))

    found = of(forward, 3, 4, 4, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    (shared,) = [shared for shared, _ in found.groups if any("pool" in value for value in shared.passive)]
    assert shared.active == ("/relu#0",)
