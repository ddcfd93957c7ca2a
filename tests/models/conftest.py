"""Small ONNX graphs, exports of torch modules, and the public data, where it is there."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from laconic.models.onnx_import.graph import onnx_dtype

Shape = Sequence[int | str]


def make_graph(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[torch.dtype, Shape]],
    outputs: Sequence[str],
    constants: Mapping[str, Tensor] | None = None,
    opset: int = 18,
) -> ModelProto:
    """A model of these nodes; ``constants`` become initializers."""
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, onnx_dtype(dtype), shape) for name, (dtype, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value.numpy(), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def save_graph(tmp_path: Path) -> Callable[..., str]:
    """Write :func:`make_graph`'s model to a file."""

    def save(*args: object, **kwargs: object) -> str:
        path = tmp_path / "graph.onnx"
        onnx.save(make_graph(*args, **kwargs), path)  # type: ignore[arg-type]
        return str(path)

    return save


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., str]:
    """Export a module with torch: the newer exporter with a free batch (``dynamo``), or the older with one sample."""

    def run(module: nn.Module, shape: Sequence[int], dynamo: bool, opset: int = 17) -> str:
        path = str(tmp_path / "export.onnx")
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            if dynamo:
                free = ({0: torch.export.Dim("n", min=1, max=4096)},)
                program = torch.onnx.export(torch.export.export(module, (x,), dynamic_shapes=free), dynamo=True)
                assert program is not None
                program.save(path)
            else:
                torch.onnx.export(module, (x[:1],), path, dynamo=False, opset_version=opset)
        return path

    return run


@pytest.fixture
def data() -> Path:
    """The folder of public data and weights, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("LACONIC_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder} (set LACONIC_DATA)")
    return folder


@pytest.fixture
def graph() -> Callable[..., ModelProto]:
    return make_graph
