"""``FILE.py:FACTORY``: run the file that the user named and call the function in it, without arguments.

Only that file is run. It is imported by its path under a name made of its path and content, so a file that gives both
a model and data is run once. A fault in it is the user's to mend: it becomes one line with the file and line number.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from laconic.errors import InputError


def load_factory(spec: str, error: type[InputError]) -> Any:
    """What the factory named by ``spec`` returns; everything that goes wrong is raised as ``error``."""
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise error("a factory that cannot be read", got=repr(spec), wanted="FILE.py:FACTORY")
    path = Path(file).resolve()
    if not path.is_file():
        raise error("no such file", got=repr(file), wanted="FILE.py:FACTORY")
    module = _run(path, error)
    factory = getattr(module, name, None)
    if not callable(factory):
        there = [key for key, value in vars(module).items() if _is_factory(key, value, module)]
        raise error(f"no function {name!r} in {file}", wanted=f"one of {', '.join(there)}" if there else "a function")
    try:
        return factory()
    except (Exception, SystemExit) as fault:
        raise error(_describe(path, fault)) from fault


def _run(path: Path, error: type[InputError]) -> ModuleType:
    text = path.read_bytes()
    name = "laconic_user_" + hashlib.sha256(str(path).encode() + b"\0" + text).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickling look the module up while it runs
    try:
        # not importlib's loader: it trusts compiled files by date and size, and writes them beside the user's file
        exec(compile(text, str(path), "exec"), vars(module))
    except BaseException as fault:
        del sys.modules[name]
        if isinstance(fault, (Exception, SystemExit)):
            raise error(_describe(path, fault)) from fault
        raise
    return module


def _is_factory(key: str, value: object, module: ModuleType) -> bool:
    return callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__


def _describe(path: Path, fault: BaseException) -> str:
    """``FILE.py:LINE: what``, where LINE is the deepest one in the user's own file."""
    lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == str(path)]
    text = str(fault) or "no message"
    if isinstance(fault, SyntaxError) and fault.filename == str(path):
        lines, text = [fault.lineno or 0], fault.msg
    return f"{path}:{lines[-1] if lines else '?'}: {type(fault).__name__}: {text}"
