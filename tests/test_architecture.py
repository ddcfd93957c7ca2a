"""The shape of the project: who may import whom, how long things may be, and what an import may cost.

    core, errors, goal -> factory, machine, ledger, surgery, fake_quantize, ... -> rooms -> story -> app, api, ...

The rooms never import each other. Each rule is shown to catch a module that breaks it.
"""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import laconic

SOURCE = Path(laconic.__file__).parent
NOUNS = {"core", "errors", "goal"}
TOOLS = {"factory", "machine", "ledger", "surgery", "fake_quantize", "hashing", "worker"}
ROOMS = {"models", "data", "profile", "steps", "runtime", "measure", "search", "proof", "pack", "report"}
STORY = {"story"}
COMMANDS = {"app", "api", "cli", "console", "demo", "doctor"}
WITHOUT_TORCH = {"measure", "search", "proof", "pack", "report", "core", "errors", "goal", "ledger", "machine"}
HEAVY = ("torch", "numpy", "numba", "onnxruntime", "openvino", "onnx", "scipy", "PIL", "torchvision", "timm", "rich")

LINES, FUNCTION_LINES = 400, 70


@dataclass(frozen=True)
class Import:
    """``name`` imported by ``module``, both without ``laconic.``; ``at_once`` when the module itself is imported."""

    module: str
    name: str
    inside: bool
    at_once: bool
    types_only: bool


def imports_of(module: str, text: str, package: bool = False) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, late: bool, types_only: bool) -> None:
        for name in _names(node, module, package):
            inside = name == "laconic" or name.startswith("laconic.")
            short = name.removeprefix("laconic").removeprefix(".") if inside else name
            found.append(Import(module, short, inside, not late and not types_only, types_only))
        late = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                visit(child, late, True)
            for child in node.orelse:
                visit(child, late, types_only)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, late, types_only)

    visit(ast.parse(text), False, False)
    return found


def _names(node: ast.AST, module: str, package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = ["laconic", *module.split(".")][: None if package and node.level == 1 else -(node.level - package)]
            base = ".".join([*parts, base] if base else parts)
        yield from (f"{base}.{alias.name}" for alias in node.names)


def sources() -> dict[str, str]:
    """The text of every module by its name without ``laconic.``; a package has its folder's name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


TEXTS = sources()
PACKAGES = {name for name in TEXTS if name == "" or (SOURCE / name.replace(".", "/") / "__init__.py").exists()}


def wrong_directions(module: str, text: str) -> list[tuple[str, str]]:
    """The imports of laconic that a module may not make, lazy ones and those for types included."""
    room = module.partition(".")[0]
    allowed: set[str] = {
        **dict.fromkeys(NOUNS, NOUNS),
        **dict.fromkeys(TOOLS, NOUNS | TOOLS),
        **{name: NOUNS | TOOLS | {name} for name in ROOMS},
        **dict.fromkeys(STORY, NOUNS | TOOLS | ROOMS | STORY),
        **dict.fromkeys(COMMANDS, NOUNS | TOOLS | ROOMS | STORY | COMMANDS),
        "report": NOUNS | {"report"},
        "": set(),  # laconic itself brings everything later
    }[room]
    used = [found for found in imports_of(module, text, module in PACKAGES) if found.inside]
    if room == "":
        used = [found for found in used if not found.types_only]
    rooms = {found.name.split(".")[0] for found in used} - {"", "__version__", "__init__"}
    return [(module, other) for other in sorted(rooms - allowed)]


def cycle(texts: dict[str, str]) -> list[str] | None:
    """A cycle of modules that import each other when they are imported."""
    graph: dict[str, set[str]] = {}
    for module, text in texts.items():
        wanted = (
            found.name for found in imports_of(module, text, module in PACKAGES) if found.inside and found.at_once
        )
        targets = {name if name in texts else name.rpartition(".")[0] for name in wanted}
        graph[module] = {target for target in targets if target in texts and target != module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def foreign(module: str, text: str) -> set[str]:
    """The libraries outside the standard library that a module imports, other than for types."""
    names = {i.name.split(".")[0] for i in imports_of(module, text) if not i.inside and not i.types_only}
    return names - set(sys.stdlib_module_names)


# ------------------------------------------------------------------------------------------------------------ direction


def test_every_module_has_a_place() -> None:
    assert {name.split(".")[0] for name in TEXTS} <= NOUNS | TOOLS | ROOMS | STORY | COMMANDS | {""}


@pytest.mark.parametrize("module", TEXTS)
def test_imports_go_one_way(module: str) -> None:
    assert wrong_directions(module, TEXTS[module]) == []


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("core", "from laconic import surgery", ["surgery"]),
        ("surgery", "from laconic.models import load", ["models"]),
        ("steps.prune.channels", "from laconic.runtime.session import Session", ["runtime"]),
        ("steps.prune.channels", "def f():\n    import laconic.runtime.session", ["runtime"]),
        ("steps", "from .. import measure", ["measure"]),
        ("steps.prune.channels", "from ...measure import records", ["measure"]),
        ("steps.prune.channels", "from ..quantize import cast", []),
        ("measure.latency", "if TYPE_CHECKING:\n    from laconic.runtime import Session", ["runtime"]),
        ("report.words", "from laconic.machine import cores", ["machine"]),
        ("report.words", "from laconic.core import Task", []),
        ("runtime.torch", "from laconic.story.shrink import shrink", ["story"]),
        ("story.shrink", "from laconic import app, measure", ["app"]),
        ("cli", "from laconic import app", []),
        ("", "from laconic.core import Task", ["core"]),
        ("", "def f():\n    from laconic.core import Task", ["core"]),
    ],
)
def test_a_wrong_import_is_caught(module: str, text: str, wrong: list[str]) -> None:
    assert [other for _, other in wrong_directions(module, text)] == wrong


def test_there_is_no_import_cycle() -> None:
    assert cycle(TEXTS) is None


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ({"data.a": "from laconic.data import b", "data.b": "from laconic.data.a import f"}, True),
        ({"data.a": "import laconic.data.b", "data.b": "from . import c", "data.c": "from .a import f"}, True),
        ({"data.a": "from laconic.data import b", "data.b": "def f():\n    from laconic.data import a"}, False),
        ({"data.a": "from laconic.data.b import f", "data.b": "import torch"}, False),
    ],
)
def test_a_cycle_is_caught(texts: dict[str, str], found: bool) -> None:
    assert (cycle(texts) is not None) is found


@pytest.mark.parametrize("module", sorted(NOUNS))
def test_the_nouns_need_the_standard_library_alone(module: str) -> None:
    assert foreign(module, TEXTS[module]) == set()


def test_a_library_in_the_nouns_is_caught() -> None:
    assert foreign("core", "def f():\n    import numpy.linalg\nimport json") == {"numpy"}
    assert foreign("core", "if TYPE_CHECKING:\n    import numpy\nelse:\n    import yaml") == {"yaml"}


@pytest.mark.parametrize("room", sorted(WITHOUT_TORCH))
def test_rooms_that_know_no_torch(room: str) -> None:
    for module, text in TEXTS.items():
        if module.split(".")[0] == room:
            assert "torch" not in foreign(module, text), module


# ---------------------------------------------------------------------------------------------------------------- form


def functions_longer_than(lines: int, text: str) -> list[str]:
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [node.name for node in nodes if (node.end_lineno or 0) - node.lineno + 1 > lines]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES
    assert functions_longer_than(FUNCTION_LINES, text) == []
    assert ast.get_docstring(ast.parse(text)), "no docstring"


def test_a_long_function_is_caught() -> None:
    text = "def short():\n    pass\nclass A:\n    async def long():\n" + "        x = 1\n" * 70
    assert functions_longer_than(70, text) == ["long"]


# ---------------------------------------------------------------------------------------------------------------- cost

COMMANDS_THAT_ARE_LIGHT = {
    "import laconic": "import laconic",
    "laconic --help": """
        from laconic.cli import main
        try:
            main(["--help"])
        except SystemExit as end:
            assert not end.code
    """,
    "laconic --version": """
        from laconic.cli import main
        try:
            main(["--version"])
        except SystemExit as end:
            assert not end.code
    """,
}


def cost(code: str) -> tuple[float, set[str]]:
    """Seconds of CPU time of a fresh interpreter, and the heavy modules that it has loaded at its end."""
    ask = f"\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code) + ask], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    return used.ru_utime + used.ru_stime, set(said.split())


@pytest.mark.parametrize("code", COMMANDS_THAT_ARE_LIGHT.values(), ids=list(COMMANDS_THAT_ARE_LIGHT))
def test_light_commands_load_nothing_heavy_and_are_quick(code: str) -> None:
    runs = [cost(code) for _ in range(3)]
    assert runs[0][1] == set()
    assert min(seconds for seconds, _ in runs) < 0.3


def test_a_heavy_import_is_caught() -> None:
    assert "numpy" in cost("import laconic\nlaconic.from_arrays")[1]


@pytest.mark.parametrize("name", laconic.__all__)
def test_the_public_names_are_there(name: str) -> None:
    assert getattr(laconic, name) is not None


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'laconic' has no attribute 'shrnik'"):
        laconic.shrnik  # noqa: B018
