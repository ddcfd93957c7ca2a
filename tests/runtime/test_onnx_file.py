"""The finished ONNX file: padding, pooling, constants and names as runtimes want them, nothing of the exporter's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from google.protobuf.message import EncodeError
from onnx import numpy_helper
from torch import Tensor, nn

from laconic.core import Recipe, Target
from laconic.errors import DeployError
from laconic.runtime import onnx_file, onnxruntime, openvino
from laconic.runtime.difference import relative_error
from laconic.runtime.export import OPSET, program_of, torch_quiet
from laconic.runtime.onnx_finish import finish
from laconic.steps.quantize.cast import Cast
from laconic.steps.quantize.post_training import Quantize
from laconic.surgery import weighted_layers
from tests.networks import INTEGER, context, inputs_of, network, task_for, tensors

TARGET = Target("onnxruntime")


class Net(nn.Module):
    """A convolution with something before and after it."""

    def __init__(self, before: object, after: object, channels: int = 3, padding: int = 1) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.conv = nn.Conv2d(channels, 6, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(self.before(x)))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The files of the residual network in float and in integers."""
    made = {}
    for quantized in (False, True):
        model: nn.Module = network("residual")
        if quantized:
            model, _ = Recipe((Quantize(),)).apply(model, task_for("residual"), context())
        made[quantized] = tmp_path_factory.mktemp("residual") / "model.onnx"
        onnx_file.deploy(model, inputs_of("residual", 3), made[quantized])
    return made


def identity(x: Tensor) -> Tensor:
    return x


def deployed(model: nn.Module, path: Path) -> onnx.GraphProto:
    """The graph of the file, after a check that it computes what the model does."""
    inputs = inputs_of("plain", 3)
    onnx_file.deploy(model.eval(), inputs, path)
    found = onnxruntime.open_file(path, TARGET)(inputs_of("plain", 5))["output"]
    with torch.no_grad():
        wanted = model(tensors(inputs_of("plain", 5))["x"]).numpy()
    assert relative_error(found, wanted) < 1e-5
    return onnx.load(path).graph


def operators(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


def attribute(graph: onnx.GraphProto, kind: str, name: str) -> object:
    (node,) = [node for node in graph.node if node.op_type == kind]
    (found,) = [a for a in node.attribute if a.name == name]
    return onnx.helper.get_attribute_value(found)


@pytest.mark.parametrize(
    ("pad", "padding", "pads"),
    [
        (lambda x: F.pad(x, (0, 1, 0, 1)), 0, [0, 0, 1, 1]),
        (lambda x: F.pad(x, (1, 2, 3, 4)), 1, [4, 2, 5, 3]),
        (nn.ZeroPad2d(1), 0, [1, 1, 1, 1]),
        (lambda x: F.pad(F.pad(x, (0, 1, 0, 0)), (0, 0, 0, 1)), 0, [0, 0, 1, 1]),
    ],
)
def test_zero_padding_moves_into_the_convolution(pad: object, padding: int, pads: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = deployed(Net(pad, identity, padding=padding), tmp_path / "f")
    assert operators(graph) == ["Conv"]
    assert attribute(graph, "Conv", "pads") == pads


@pytest.mark.parametrize(
    ("pad", "channels"),
    [
        (lambda x: F.pad(x, (1, 1, 1, 1), value=2.0), 3),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), 3),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"), 3),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), 5),
        (lambda x: F.pad(x, (-1, 1, 0, 0)), 3),
    ],
    ids=["number", "reflect", "replicate", "channels", "cropping"],
)
def test_other_padding_stays(pad: object, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = deployed(Net(pad, identity, channels), tmp_path / "f")
    assert "Conv" in operators(graph)
    assert len(operators(graph)) > 1


def test_padding_that_somebody_else_reads_stays(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.pad(x, (1, 1, 1, 1))
            return self.conv(y) + y

    assert "Pad" in operators(deployed(Two(), tmp_path / "f"))


def by_hand(pads: list[int], own: list[int], **options: object) -> onnx.GraphProto:
    """Pad -> Conv as a file from elsewhere may have it, finished."""
    helper, rng = onnx.helper, np.random.default_rng(0)
    inputs = ["x", "pads", *(["fill"] if "fill" in options else []), *(["", "axes"] if "axes" in options else [])]
    mode = {"mode": options["mode"]} if "mode" in options else {}
    conv = {"auto_pad": "SAME_UPPER"} if "auto" in options else {"pads": own}
    nodes = [helper.make_node("Pad", inputs, ["p"], **mode), helper.make_node("Conv", ["p", "w"], ["y"], **conv)]
    constants = {"pads": np.array(pads, np.int64), "w": rng.standard_normal((2, 3, 3, 3)).astype(np.float32)}
    if "axes" in options:
        constants["axes"] = np.array(options["axes"], np.int64)
    if "fill" in options:
        constants["fill"] = np.array(options["fill"], np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model = ir.from_proto(before)
    finish(model)
    after = ir.to_proto(model)
    x = {"x": inputs_of("plain", 2)["x"]}
    wanted, found = (ort.InferenceSession(m.SerializeToString()).run(None, x)[0] for m in (before, after))
    assert relative_error(found, wanted) < 1e-6
    return after.graph


@pytest.mark.parametrize(
    ("pads", "own", "options", "wanted"),
    [
        ([0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0], {}, [0, 0, 1, 1]),
        ([0, 0, 1, 2, 0, 0, 3, 4], [1, 1, 0, 0], {}, [2, 3, 3, 4]),
        ([0, 0, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1], {"fill": 0.0}, [2, 2, 2, 2]),
        ([0, 0, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1], {"fill": 1.0}, None),
        ([0, 0, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1], {"mode": "reflect"}, None),
        ([0, 0, -1, 0, 0, 0, 1, 1], [1, 1, 1, 1], {}, None),
        ([1, 0, 1, 1, 0, 0, 1, 1], [1, 1, 1, 1], {}, None),
        ([0, 0, 1, 1, 0, 0, 1, 1], [], {"auto": True}, None),
        ([0, 0, 0, 0], [1, 1, 1, 1], {"axes": [2, 3]}, None),
        ([1, 1, 1, 1], [1, 1, 1, 1], {"axes": [2, 3]}, None),
    ],
)
def test_padding_in_a_file_from_elsewhere(
    pads: list[int], own: list[int], options: dict[str, object], wanted: list[int] | None
) -> None:
    graph = by_hand(pads, own, **options)
    assert operators(graph) == (["Conv"] if wanted else ["Pad", "Conv"])
    if wanted:
        assert attribute(graph, "Conv", "pads") == wanted


def test_equal_constants_are_stored_once() -> None:
    helper, weight = onnx.helper, np.ones((3, 3, 1, 1), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "a"], ["m"]), helper.make_node("Conv", ["m", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(weight, "a"), numpy_helper.from_array(weight.copy(), "b")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    finish(model)
    assert len(model.graph.initializers) == 1


@pytest.mark.parametrize(
    ("after", "wanted"),
    [
        (lambda x: x.mean((2, 3), keepdim=True), ["Conv", "GlobalAveragePool"]),
        (lambda x: x.mean((-1, -2), keepdim=True), ["Conv", "GlobalAveragePool"]),
        (lambda x: x.mean((2, 3)), ["Conv", "GlobalAveragePool", "Flatten"]),
        (nn.AdaptiveAvgPool2d(1), ["Conv", "GlobalAveragePool"]),
        (lambda x: x.mean(2), ["Conv", "ReduceMean"]),
        (lambda x: x.mean(1), ["Conv", "ReduceMean"]),
        (lambda x: x.mean((1, 2, 3)), ["Conv", "ReduceMean"]),
    ],
)
def test_the_mean_over_space_is_global_pooling(after: object, wanted: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert operators(deployed(Net(identity, after), tmp_path / "f")) == wanted


@pytest.mark.parametrize("quantized", [False, True])
def test_the_exporters_notes_are_gone(quantized: bool, residual: dict[bool, Path]) -> None:
    proto = onnx.load(residual[quantized])
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.metadata_props
    assert not proto.functions
    assert not proto.graph.metadata_props
    assert not proto.graph.value_info
    for item in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        assert not item.doc_string
        assert not item.metadata_props
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == OPSET


def test_names_and_attributes_take_little_room(residual: dict[bool, Path]) -> None:
    """They once weighed more than the weights of the quantized network."""
    for path in residual.values():
        graph = onnx.load(path).graph
        stored = sum(len(tensor.raw_data) for tensor in graph.initializer)
        assert path.stat().st_size - stored < 170 * len(graph.node)
    graph = onnx.load(residual[True]).graph
    names = [name for node in graph.node for name in (node.name, *node.input, *node.output)]
    assert max(map(len, names)) < 30


@pytest.mark.parametrize("quantized", [False, True])
def test_layers_go_by_their_own_names(quantized: bool, residual: dict[bool, Path]) -> None:
    graph = onnx.load(residual[quantized]).graph
    names = [node.name for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert sorted(names) == sorted(weighted_layers(network("residual")))
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Relu" and made[node.input[0]].op_type == "Conv":
            assert node.name.split("/")[0] == made[node.input[0]].name


def test_the_same_quantizer_on_both_sides_of_the_flatten(residual: dict[bool, Path]) -> None:
    graph = onnx.load(residual[True]).graph
    kinds = operators(graph)
    at = kinds.index("Flatten")
    assert kinds[at - 3 : at + 3] == [
        *("GlobalAveragePool", "QuantizeLinear", "DequantizeLinear"),
        *("Flatten", "QuantizeLinear", "DequantizeLinear"),
    ]
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    scales = {float(values[graph.node[i].input[1]]) for i in (at - 2, at - 1, at + 1, at + 2)}
    assert len(scales) == 1


def test_names_are_unique_and_the_batch_is_free(tmp_path: Path) -> None:
    for name in ("shuffled", "pair"):
        onnx_file.deploy(network(name), inputs_of(name, 3), tmp_path / "f")
        graph = onnx.load(tmp_path / "f").graph
        names = [node.name for node in graph.node]
        values = [output for node in graph.node for output in node.output]
        assert len(set(names)) == len(names)
        assert len(set(values)) == len(values)
        for item in (*graph.input, *graph.output):
            assert item.type.tensor_type.shape.dim[0].dim_param


def test_what_an_operator_takes_anyway_is_not_written(tmp_path: Path) -> None:
    layers = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3, padding=1, groups=2, dilation=1)
    model = nn.Sequential(*layers, nn.MaxPool2d(3, stride=1), nn.Flatten(), nn.Linear(4, 2), nn.Softmax(1))
    graph = deployed(model, tmp_path / "f")
    said = [(node.op_type, {a.name for a in node.attribute}) for node in graph.node]
    assert said == [
        ("Conv", {"strides"}),
        ("Conv", {"pads", "group"}),
        ("MaxPool", {"kernel_shape"}),
        ("Flatten", set()),
        ("Gemm", {"transB"}),
        ("Softmax", {"axis"}),
    ]


@pytest.mark.parametrize(("shape", "kind"), [((-1, 192), "Flatten"), ((-1, 3, 64), "Reshape")])
def test_a_reshape_to_one_axis_is_flatten(shape: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    class Shaped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(shape).mean(-1)

    assert kind in operators(deployed(Shaped(), tmp_path / "f"))


def test_the_weight_of_a_layer_that_is_called_twice_is_stored_once(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 63, padding=31)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.relu(self.layer(x)))

    model, _ = Recipe((Quantize(),)).apply(Wide(), task_for("plain", 4), context())
    onnx_file.deploy(model, inputs_of("plain", 2), tmp_path / "f")
    weights = [t for t in onnx.load(tmp_path / "f").graph.initializer if math.prod(t.dims) == 9 * 63 * 63]
    assert len(weights) == 1
    assert weights[0].data_type == onnx.TensorProto.INT8


# ----------------------------------------------------------------------------------------------------------- precision


def test_precision_is_a_note_in_the_file_and_openvino_computes_in_it(tmp_path: Path) -> None:
    given = context(traits=INTEGER.__class__(precisions=("f32", "bf16")))
    inputs, found = inputs_of("plain", 8), {}
    for precision in ("f32", "bf16"):
        model, _ = Recipe((Cast(precision),)).apply(network("plain"), task_for("plain"), given)
        facts = onnx_file.deploy(model, inputs, tmp_path / f"{precision}.onnx")
        assert facts["precision"] == onnx_file.read_precision(tmp_path / f"{precision}.onnx") == precision
        assert facts["operators"] == onnx_file.count_operators(onnx.load(tmp_path / f"{precision}.onnx"))
        found[precision] = openvino.open_file(tmp_path / f"{precision}.onnx", Target("openvino"))(inputs)["output"]
    assert facts["operators"] == {"Conv": 2, "Flatten": 1, "Gemm": 2, "MaxPool": 2, "Relu": 3}
    assert onnx_file.read_precision(tmp_path / "other.pt2") == "f32"
    with torch.no_grad():
        wanted = network("plain")(torch.as_tensor(inputs["x"])).numpy()
    assert relative_error(found["f32"], wanted) < 1e-5
    if "bf16" in openvino.traits(Target("openvino")).precisions:
        assert 1e-4 < relative_error(found["bf16"], wanted) < 3e-2


# -------------------------------------------------------------------------------------------------------------- export


def test_what_fails_is_named_by_its_first_cause() -> None:
    def wrapped() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise RuntimeError("wrapped\nmore") from error

    where = r"\(test_onnx_file\.py:\d+: raise "
    first = rf"^torch cannot try: KeyError: 'first' {where}KeyError\(.first.\)\)$"
    with pytest.raises(DeployError, match=first), torch_quiet("try"):
        wrapped()
    bare = rf"^torch cannot try: ValueError: no message {where}ValueError\)$"
    with pytest.raises(DeployError, match=bare), torch_quiet("try"):
        raise ValueError


def test_the_newer_exporter_is_quiet_and_leaves_logging_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    import logging
    import warnings

    logging.disable(logging.DEBUG)
    try:
        with torch_quiet("try"):
            print("noise")
            logging.getLogger("torch.onnx").error("noise")
            warnings.warn("noise", stacklevel=1)
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
    assert "".join(capfd.readouterr()) == ""


def test_a_program_takes_any_batch() -> None:
    program, outputs = program_of(network("plain"), tensors(inputs_of("plain", 2)))
    assert outputs == ["output"]
    for n in (1, 2, 9):
        x = tensors(inputs_of("plain", n))["x"]
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), network("plain")(x), rtol=1e-5, atol=1e-6)


def test_numbers_are_kept_to_the_bit(tmp_path: Path) -> None:
    onnx_file.deploy(network("mlp"), inputs_of("mlp", 3), tmp_path / "f")
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "f").graph.initializer}
    for name, parameter in network("mlp").named_parameters():
        assert np.array_equal(stored[name], parameter.detach().numpy())


def test_a_convolution_of_the_pooled_map_is_gemm_and_gives_float(tmp_path: Path) -> None:
    model, _ = Recipe((Quantize(),)).apply(network("depthwise"), task_for("depthwise"), context())
    path = tmp_path / "model.onnx"
    onnx_file.deploy(model, inputs_of("depthwise", 3), path)
    found = onnxruntime.optimized_operators(path, TARGET)
    assert (found["QLinearConv"], found["QGemm"]) == (3, 1)
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "DequantizeLinear"} & set(found), found
    inputs = inputs_of("depthwise", 5, seed=3)
    with torch.no_grad():
        wanted = model(tensors(inputs)["x"]).numpy()
    for runtime in (onnxruntime, openvino):
        logits = runtime.open_file(path, TARGET)(inputs)["output"]
        assert relative_error(logits, wanted) < 1e-2
        assert len(np.unique(logits)) == logits.size, "no two are rounded to one"


@pytest.mark.parametrize(("most", "raised"), [(-1, DeployError), (0, MemoryError)])
def test_a_network_that_protobuf_does_not_write(
    most: int, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TooLarge:
        graph = onnx.GraphProto()

        def SerializeToString(self) -> bytes:  # noqa: N802  (protobuf's name)
            raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(onnx_file.ir, "to_proto", lambda graph: TooLarge())
    monkeypatch.setattr(onnx_file, "_MOST_BYTES", most)
    with pytest.raises(raised, match="larger than 2 GiB" if most < 0 else "no memory left"):
        onnx_file.deploy(network("plain"), inputs_of("plain", 2), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
