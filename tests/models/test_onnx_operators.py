"""Each operator of the table against ONNX Runtime, alone: an operator is tested because it is listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto
from torch import Tensor

from laconic.models.onnx_import.build import build
from laconic.models.onnx_import.operators import OPERATORS
from laconic.models.onnx_import.session import run_graph
from laconic.models.onnx_import.verify import same

_GENERATOR = torch.Generator().manual_seed(0)


def real(*shape: int) -> Tensor:
    return torch.randn(shape, generator=_GENERATOR)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape, generator=_GENERATOR) + 0.1


def whole(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@dataclass(frozen=True)
class Case:
    """One node: its inputs, of which ``constant`` are initializers, its attributes and its number of outputs."""

    operator: str
    inputs: tuple[Tensor | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    constant: tuple[int, ...] = ()
    opset: int = 18
    outputs: int = 1

    def __str__(self) -> str:
        settings = ",".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.operator}-{self.opset}[{settings}]"


X = real(2, 6, 8, 8)
FLAT = real(2, 6)
BOOL = real(2, 6) > 0
UNARY = [
    *("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg", "Reciprocal", "Relu"),
    *("Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tan", "Tanh", "Elu", "Celu", "LeakyRelu"),
    *("ThresholdedRelu", "HardSigmoid", "Dropout", "Softmax", "LogSoftmax", "Flatten", "Transpose", "Size"),
]
COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
REDUCTIONS = ["L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
CASES = [
    *(Case(name, (FLAT,)) for name in UNARY),
    *(Case(name, (positive(2, 6),)) for name in ("Log", "Sqrt")),
    *(Case(name, (torch.tensor([1.0, torch.nan, torch.inf]),)) for name in ("IsNaN", "IsInf")),
    *(Case(name, (FLAT, real(2, 6))) for name in ("Add", "Sub", "Mul", "Div", *COMPARISONS)),
    *(Case(name, (BOOL, real(2, 6) > 0)) for name in ("And", "Or", "Xor")),
    *(Case(name, (FLAT, real(1, 6), real(2, 1))) for name in ("Max", "Min", "Mean", "Sum")),
    *(Case(f"Reduce{name}", (X, whole(2, 3)), {"keepdims": 0}, (1,)) for name in REDUCTIONS),
    *(Case(f"Reduce{name}", (X,), {"axes": [1]}, opset=11) for name in REDUCTIONS),
    Case("ReduceMean", (X, whole()), {"noop_with_empty_axes": 1}, (1,)),
    Case("ReduceMax", (X,)),
    Case("Not", (BOOL,)),
    Case("Div", (whole(7, -7), whole(2, 2))),
    Case("Pow", (positive(3), whole(1, 2, 3))),
    Case("Mod", (whole(7, -7), whole(3, 3))),
    Case("Mod", (real(4), real(4)), {"fmod": 1}),
    Case("Where", (BOOL, FLAT, real(6))),
    Case("Clip", (FLAT, torch.tensor(0.0), torch.tensor(0.5)), {}, (1, 2)),
    Case("Clip", (FLAT, None, torch.tensor(0.5))),
    Case("Clip", (FLAT,), {"min": -0.5, "max": 0.5}, opset=10),
    Case("HardSigmoid", (FLAT,), {"alpha": 1 / 6, "beta": 0.5}),
    Case("Gelu", (FLAT,), {"approximate": "tanh"}, opset=20),
    Case("PRelu", (X, real(6, 1, 1)), {}, (1,)),
    Case("PRelu", (X, real(6, 8, 8)), {}, (1,)),
    Case("Softmax", (X,), {"axis": 1}, opset=11),
    Case("Softmax", (FLAT,), {"axis": 1}, opset=11),
    Case("Cast", (FLAT,), {"to": onnx.TensorProto.INT64}),
    Case("CastLike", (FLAT, whole(1))),
    Case("CumSum", (FLAT, torch.tensor(1)), {}, (1,)),
    Case("Concat", (FLAT, real(2, 3)), {"axis": 1}),
    Case("ConstantOfShape", (whole(2, 3),), {"value": onnx.helper.make_tensor("v", onnx.TensorProto.INT64, [1], [7])}),
    Case("DepthToSpace", (real(2, 8, 3, 3),), {"blocksize": 2}),
    Case("DepthToSpace", (real(2, 8, 3, 3),), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", (X,), {"blocksize": 2}),
    Case("Expand", (real(2, 1, 4), whole(3, 1)), {}, (1,)),
    Case("Flatten", (X,), {"axis": 2}),
    Case("Gather", (X, whole([0, -1], [2, 2])), {"axis": 1}),
    Case("Gather", (X, torch.tensor(-1)), {"axis": 1}, (1,)),
    Case("GatherElements", (FLAT, whole([0, -1], [2, 2])), {"axis": 1}),
    Case("GatherND", (X, whole([0, 1], [1, 5]))),
    Case("NonZero", (torch.tensor([[0.0, 1.0], [2.0, 0.0]]),)),
    Case("OneHot", (whole(0, 2, -1), torch.tensor(3), torch.tensor([0.5, 2.0])), {}, (1,)),
    Case("Pad", (X, whole(0, 0, 1, 2, 0, 0, 0, 3), torch.tensor(1.5)), {}, (1, 2)),
    Case("Pad", (X, whole(0, 1, 0, 0, 0, 2, 0, 0)), {}, (1,)),
    Case("Pad", (X, whole(1, 2, 3, 4), None, whole(2, 3)), {"mode": "reflect"}, (1, 3)),
    Case("Pad", (X, whole(0, 0, 1, 2, 0, 0, 0, 3)), {"mode": "edge"}, (1,)),
    Case("Range", (torch.tensor(1), torch.tensor(9), torch.tensor(3))),
    Case("Reshape", (X, whole(0, -1, 4)), {}, (1,)),
    Case("Reshape", (X, whole(0, -1, 4))),
    Case("Resize", (X, None, torch.tensor([1.0, 1.0, 2.0, 2.0])), {"mode": "linear"}, (2,)),
    Case("Resize", (X, None, None, whole(2, 6, 12, 5)), {"mode": "cubic"}, (3,)),
    Case(
        "Resize",
        (X, None, torch.tensor([1.0, 1.0, 2.0, 1.5])),
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        (2,),
    ),
    Case(
        "Resize",
        (X, None, None, whole(2, 6, 15, 4)),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    Case("Upsample", (X, torch.tensor([1.0, 1.0, 2.0, 2.0])), {"mode": "nearest"}, (1,), opset=9),
    Case("ScatterElements", (FLAT, whole([0, -1], [1, 0]), real(2, 2)), {"axis": 0}),
    Case("ScatterND", (FLAT, whole([0], [1]), real(2, 6))),
    Case("Shape", (X,), {"start": 1, "end": 3}),
    Case("Slice", (X, whole(1, -5), whole(5, 2**62), whole(1, 3), whole(2, 1)), {}, (1, 2, 3, 4)),
    Case("Slice", (X, whole(-1), whole(-(2**62)), whole(2), whole(-2)), {}, (1, 2, 3, 4)),
    Case("Slice", (X,), {"starts": [1], "ends": [3], "axes": [2]}, opset=9),
    Case("Split", (X, whole(1, 5)), {"axis": 1}, (1,), outputs=2),
    Case("Split", (X,), {"axis": 2, "num_outputs": 3}, outputs=3),
    Case("Split", (X,), {"axis": 2}, opset=11, outputs=2),
    Case("Squeeze", (real(1, 2, 1, 3), whole(0, 2)), {}, (1,)),
    Case("Squeeze", (real(1, 2, 1, 3),)),
    Case("Unsqueeze", (FLAT, whole(-1, 0)), {}, (1,)),
    Case("Unsqueeze", (FLAT,), {"axes": [1]}, opset=11),
    Case("Tile", (FLAT, whole(1, 3)), {}, (1,)),
    Case("TopK", (FLAT, whole(3)), {"axis": 1}, (1,), outputs=2),
    Case("Transpose", (X,), {"perm": [0, 2, 3, 1]}),
    Case("Trilu", (real(4, 4), torch.tensor(1)), {"upper": 0}, (1,)),
    Case("ArgMax", (FLAT,), {"axis": 1, "keepdims": 0}),
    Case("ArgMin", (FLAT,), {"axis": 1}),
    Case("Einsum", (FLAT, real(6, 3)), {"equation": "ij,jk->ki"}),
    Case("MatMul", (real(2, 3, 4), real(2, 4, 5))),
    Case("Gemm", (real(3, 2), real(3, 4), real(4)), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("GroupNormalization", (X, positive(6), real(6)), {"num_groups": 3}, (1, 2), opset=21),
    Case("InstanceNormalization", (X, positive(6), real(6)), {}, (1, 2)),
    Case("LayerNormalization", (X, positive(8, 8), real(8)), {"axis": 2}, (1, 2)),
    Case("LayerNormalization", (X, positive(8)), {}, (1,)),
    Case("LpNormalization", (FLAT,), {"axis": 1, "p": 1}),
    Case("LRN", (X,), {"size": 3, "alpha": 0.1}),
    Case("BatchNormalization", (X, positive(6), real(6), real(6), positive(6)), {}, (1, 2, 3, 4)),
    Case("BatchNormalization", (X, positive(6), real(6), real(6), positive(6))),
    Case("GlobalAveragePool", (X,)),
    Case("GlobalMaxPool", (X,)),
    Case("MaxPool", (X,), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 0, 1, 0]}),
    Case("MaxPool", (-positive(1, 2, 8, 8),), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", (X,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", (X,), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("AveragePool", (X,), {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    Case("Conv", (X, real(4, 3, 3, 3), real(4)), {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}, (1, 2)),
    Case("Conv", (X, real(4, 6, 3, 3)), {"pads": [0, 0, 1, 1], "strides": [2, 2]}, (1,)),
    Case("Conv", (real(2, 6, 9, 8), real(4, 6, 3, 3)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (1,)),
    Case("Conv", (X, real(4, 6, 3, 3)), {"auto_pad": "SAME_UPPER"}, (1,)),
    Case("Conv", (X, real(4, 6, 3, 3)), {"dilations": [2, 2], "pads": [2, 1, 2, 0]}),
    Case("Conv", (real(2, 6, 8), real(4, 6, 3)), {"auto_pad": "VALID"}, (1,)),
    Case(
        "ConvTranspose", (X, real(6, 2, 3, 3), real(4)), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}, (1, 2)
    ),
    Case("Gemm", (FLAT, real(6, 3), real(3)), {}, (1, 2)),
    Case("Gemm", (FLAT, real(3, 6), real(1, 3)), {"transB": 1}, (1, 2)),
    Case("Gemm", (FLAT, real(6, 3), torch.tensor(0.5)), {}, (1, 2)),
    Case("MatMul", (real(2, 5, 6), real(6, 3)), {}, (1,)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator(case: Case, graph: Callable[..., ModelProto]) -> None:
    names = [f"in{i}" if x is not None else "" for i, x in enumerate(case.inputs)]
    outputs = [f"out{i}" for i in range(case.outputs)]
    node = onnx.helper.make_node(case.operator, names, outputs, **case.attributes)
    given = {i: x for i, x in enumerate(case.inputs) if x is not None}
    moving = {names[i]: x for i, x in given.items() if i not in case.constant}
    model = graph(
        [node],
        {name: (x.dtype, x.shape) for name, x in moving.items()},
        outputs,
        {names[i]: given[i] for i in case.constant},
        case.opset,
    )
    wanted = run_graph(model, list(moving.values()))
    module = build(model, list(moving.values()), None)
    assert not module.unsupported
    found = module(*moving.values())
    for result, reference in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        assert same(result, reference)


def test_every_operator_has_a_case() -> None:
    assert {case.operator for case in CASES} >= set(OPERATORS)
