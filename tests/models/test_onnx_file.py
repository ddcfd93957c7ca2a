"""Files: whole networks, fixed batches, and files that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torchvision
from onnx import helper
from torch import nn

from laconic.errors import ModelError
from laconic.models import load
from laconic.models.onnx_import import session
from laconic.models.onnx_import.module import OnnxModule
from laconic.models.onnx_import.operators import OPERATORS
from laconic.models.onnx_import.session import run_graph

FLOAT = torch.float32
models = torchvision.models
NETS: dict[str, Callable[[], nn.Module]] = {
    "squeezenet": models.squeezenet1_1,
    "mobilenet_v3": models.mobilenet_v3_small,
    "shufflenet": models.shufflenet_v2_x0_5,
    "regnet_y": lambda: models.RegNet(models.regnet.BlockParams.from_init_params(4, 8, 16.0, 2.0, 8, se_ratio=0.25)),
    "resnet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]),
    "densenet": lambda: models.DenseNet(8, (2, 2), 16),
    "convnext": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]
    ),
    "swin": lambda: models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4]),
    "vit": lambda: models.VisionTransformer(64, 16, 2, 2, 16, 32),
}
FREE = {"squeezenet": True, "vit": True, "swin": True}


@pytest.mark.parametrize("name", NETS)
def test_network(name: str, export: Callable[..., str]) -> None:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    for parameter in net.parameters():
        if not parameter.any():  # torchvision's transformer begins with zeros at its end
            nn.init.normal_(parameter, std=0.1)
    loaded = load(export(net, (3, 64, 64), dynamo=name in FREE))
    module = loaded.module
    assert isinstance(module, OnnxModule)
    assert module.unsupported == {}
    assert loaded.input_shape == (3, 64, 64)
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), net(x), rtol=1e-3, atol=1e-4)
        model = module.to_onnx()
        onnx.checker.check_model(model)
        (written,) = run_graph(model, [x[:1]])
        torch.testing.assert_close(written, net(x[:1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dynamo", [False, True])
def test_imported_network_exports_again(dynamo: bool, export: Callable[..., str]) -> None:
    """Sizes stay sizes: ``torch.export`` sees no data in a shape."""
    import timm

    net = timm.create_model("test_vit").eval()
    module = load(export(net, (3, 160, 160), dynamo=dynamo)).module
    x = torch.randn(2, 3, 160, 160)
    free = ({0: torch.export.Dim("n", min=1, max=4096)},) if dynamo else None
    program = torch.export.export(module, (x,) if dynamo else (x[:1],), dynamic_shapes=free)
    with torch.no_grad():
        y = program.module()(x if dynamo else x[:1])
        torch.testing.assert_close(y, net(x if dynamo else x[:1]), rtol=1e-3, atol=1e-4)


def test_face_detector(data: Path) -> None:
    loaded = load(str(data / "detection/face_rfb320.onnx"))
    assert isinstance(loaded.module, OnnxModule)
    assert loaded.module.unsupported == {}
    assert loaded.module.fixed_batch is None
    scores, boxes = loaded.module(torch.randn(2, 3, 240, 320))
    assert scores.shape == (2, 4420, 2)
    assert boxes.shape == (2, 4420, 4)


def flattened(shape: list[int]) -> dict[str, Any]:
    """x (1, 2, 3) reshaped to ``shape``, then a linear layer."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["flat"]), helper.make_node("Gemm", ["flat", "w"], ["y"])]
    constants = {"shape": torch.tensor(shape), "w": torch.randn(6, 4)}
    return {"nodes": nodes, "inputs": {"x": (FLOAT, [1, 2, 3])}, "outputs": ["y"], "constants": constants}


@pytest.mark.parametrize("shape", [[-1, 6], [1, 6], [1, -1]])
def test_batch_of_one_is_freed(shape: list[int], save_graph: Callable[..., str]) -> None:
    module = load(save_graph(**flattened(shape))).module
    assert isinstance(module, OnnxModule)
    assert module.fixed_batch is None
    x = torch.randn(5, 2, 3)
    together = module(x)
    assert together.shape == (5, 4)
    torch.testing.assert_close(together, torch.cat([module(x[i : i + 1]) for i in range(5)]))
    torch.testing.assert_close(run_graph(module.to_onnx(), [x])[0], together)


def test_batch_that_matters_stays_fixed(save_graph: Callable[..., str]) -> None:
    """A mean over the batch: two samples together are not two alone."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    ]
    loaded = load(save_graph(nodes, {"x": (FLOAT, [1, 3])}, ["y"], opset=13))
    assert getattr(loaded.module, "fixed_batch", None) == 1
    assert loaded.note == "the graph takes a batch of 1 only"
    x = torch.randn(4, 3)
    torch.testing.assert_close(loaded.module(x), 2 * x)


def test_constant_output_and_two_inputs(save_graph: Callable[..., str]) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("Neg", ["c"], ["z"])]
    inputs = {"a": (FLOAT, ["n", 3]), "b": (FLOAT, ["n", 3])}
    loaded = load(save_graph(nodes, inputs, ["y", "z"], {"c": torch.ones(2)}))
    assert loaded.input_names == ("a", "b")
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    y, z = loaded.module(b=b, a=a)
    torch.testing.assert_close(y, a + b)
    assert z.tolist() == [-1, -1]


def test_names_that_a_module_already_has(save_graph: Callable[..., str]) -> None:
    names = ["x", "forward", "a.b", "a/b", "1", "plan"]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)]
    module = load(save_graph(nodes, {"x": (FLOAT, ["n", 3])}, ["plan"])).module
    assert [name for name, _ in module.named_children()] == ["node_forward", "a_b", "a_b_2", "node_1", "node_plan"]


def test_wrong_operator_is_found(monkeypatch: pytest.MonkeyPatch, save_graph: Callable[..., str]) -> None:
    monkeypatch.setitem(OPERATORS, "Tanh", lambda node, x: torch.tanh(x) * 1.1)
    nodes = [
        helper.make_node(operator, [a], [b])
        for operator, a, b in (("Relu", "x", "r"), ("Tanh", "r", "t"), ("Exp", "t", "y"))
    ]
    with pytest.raises(ModelError, match=r"first difference at t \(Tanh\)"):
        load(save_graph(nodes, {"x": (FLOAT, ["n", 3])}, ["y"]))


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage", b"\x08\x07\x12\x04onnx"])
def test_corrupt_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as ONNX"):
        load(str(path))


def test_truncated_file(save_graph: Callable[..., str]) -> None:
    path = save_graph(**flattened([1, 6]))
    Path(path).write_bytes(Path(path).read_bytes()[:-30])
    with pytest.raises(ModelError, match=r"cannot be read as ONNX|cannot run the file"):
        load(path)


def beside(path: str) -> str:
    """The same graph with its data in another file."""
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


class Tokens(nn.Module):
    """Reads its tokens as floats; its table is a matrix that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide, self.head = nn.Embedding(50, 8), nn.Linear(16, 300), nn.Linear(300, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.wide(self.table(x.long()).flatten(1)).relu())


def test_data_beside_the_graph(export: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, opened = list[int](), session.onnxruntime.InferenceSession

    def watched(graph: bytes, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(graph))
        return opened(graph, *args, **kwargs)

    monkeypatch.setattr(session.onnxruntime, "InferenceSession", watched)
    torch.manual_seed(0)
    net = Tokens().eval()
    path = Path(beside(export(net, (2,), dynamo=True)))
    monkeypatch.chdir(path.parent)
    module = load(path.name).module
    assert max(sizes) < 4 * 16 * 300, "the matrices are not in the graph that protobuf holds"
    x = torch.randint(0, 50, (3, 2)).float()
    with torch.no_grad():
        torch.testing.assert_close(module(x), net(x))
        torch.testing.assert_close(run_graph(module.to_onnx(), [x])[0], net(x))


@pytest.mark.parametrize("content", [None, b"short"])
def test_data_beside_the_graph_that_is_not_there(content: bytes | None, save_graph: Callable[..., str]) -> None:
    path = beside(save_graph(**flattened([1, 6])))
    data = Path(path).with_name("weights.bin")
    data.unlink() if content is None else data.write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read"):
        load(path)


def test_missing_file() -> None:
    with pytest.raises(ModelError, match=r"no such file: got none\.onnx"):
        load("none.onnx")


def test_nan_weight(save_graph: Callable[..., str]) -> None:
    made = flattened([1, 6])
    made["constants"]["w"][0, 0] = torch.nan
    with pytest.raises(ModelError, match="tensor w: got 1 of 24 values NaN"):
        load(save_graph(**made))


def test_invalid_graph(save_graph: Callable[..., str]) -> None:
    nodes = [helper.make_node("Relu", ["nowhere"], ["y"])]
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the file"):
        load(save_graph(nodes, {"x": (FLOAT, [1, 3])}, ["y"]))


def test_other_float(save_graph: Callable[..., str]) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(ModelError, match=r"another float type: got .*, wanted float32"):
        load(save_graph(nodes, {"x": (torch.float16, [1, 3])}, ["y"]))
