"""torch itself, on the CPU or a GPU: the file is a torch.export program.

It is written on the CPU and moved when it is opened. On a GPU float32 is float32, without TF32, and a call's time holds
the copies to the GPU and back: it returns when the outputs are there.

It has no integer kernels that the export keeps, so its traits offer none: quantized layers would only be simulated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from laconic import surgery
from laconic.core import Array, Arrays, Facts, Target, Traits
from laconic.errors import DeployError
from laconic.runtime.export import program_of, torch_quiet
from laconic.runtime.session import Session

SUFFIX = ".pt2"
DEVICES = ("cpu", "cuda")


def traits(target: Target) -> Traits:
    return Traits()


def deploy(model: nn.Module, example: Arrays, path: Path, target: Target) -> Facts:
    inputs = {name: torch.as_tensor(x[:2]) for name, x in example.items()}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.nbytes != tensor.untyped_storage().nbytes():  # a part of another: the whole of it would be stored
            tensor.data = tensor.data.clone()
    program, outputs = program_of(model, inputs)
    names = {"inputs.txt": "\n".join(example), "outputs.txt": "\n".join(outputs)}
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=names)
    return {"batch": "free"}


def open_file(path: Path, target: Target) -> Session:
    if target.device == "cuda" and not torch.cuda.is_available():
        raise DeployError("torch sees no CUDA device here")
    module, inputs, outputs = _opened(path, target.device)

    def run(arrays: Arrays) -> list[Array]:
        tensors = {name: torch.as_tensor(np.asarray(arrays[name])).to(target.device) for name in inputs}
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return [y.cpu().numpy() for y in surgery.call(module, tensors).values()]

    return Session(run, inputs, outputs, batch=target.batch)


def _opened(path: Path, device: str) -> tuple[nn.Module, list[str], list[str]]:
    """The program as a module on ``device``, with the tensors that it makes itself, which ``Module.to`` would leave;
    the names of its inputs and outputs."""
    names: dict[str, object] = {"inputs.txt": "", "outputs.txt": ""}
    with torch_quiet("open the file"):
        program = torch.export.load(str(path), extra_files=names)
        module = move_to_device_pass(program, device).module()
    return module, str(names["inputs.txt"]).split("\n"), str(names["outputs.txt"]).split("\n")


def layer_times(path: Path, target: Target, inputs: Arrays) -> dict[str, float]:
    """Nothing: the program's kernels do not say which module they came from."""
    return {}
