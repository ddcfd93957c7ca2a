"""Where a package's time goes: each layer in the runtime's own profile beside the original's, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import onnx

from laconic.core import JsonObject
from laconic.errors import TargetError
from laconic.pack.package import Package
from laconic.runtime import runtime_of
from laconic.runtime.layer_values import stored
from laconic.runtime.nodes import Node, times_by_module
from laconic.story.inputs import made_up

_SLOWER, _MATTERS = 1.2, 0.02
"""A layer is called slower from this factor on, if it takes this share of the time."""

_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Concat", "Split", "Slice", "Reorder", "MaxPool", "Pooling")


def slow(package: Package) -> JsonObject:
    """The time of each layer before and after, the kernels that ran, and findings, as JSON; times in milliseconds.

    The inputs are made up, since times do not depend on them. The profile costs time itself: its sums are above the
    latencies of the certificate. Raises :class:`TargetError` where the runtime does not say which kernels ran.
    """
    target = package.target
    executed: Callable[..., list[Node]] | None = getattr(runtime_of(target), "executed", None)
    if executed is None or package.model_path.suffix != ".onnx":
        raise TargetError(
            f"{target.runtime} does not say which kernels ran, nor for how long", got=package.model_path.name,
            wanted="a package for onnxruntime or openvino",
        )  # fmt: skip
    inputs = made_up(package.manifest["inputs"], target.batch)
    before, after = (executed(path, target, inputs) for path in (package.baseline_path, package.model_path))
    wanted = stored(onnx.load(package.model_path))
    rows = _rows(before, after)
    total = sum(node.time_ms for node in after)
    shares = {kind: _time(n for n in after if n.arithmetic == kind) / total for kind in ("integer", "float", "convert")}
    islands = _islands(after, wanted)
    other = _other_arithmetic(after, wanted)
    told = {name for finding in other for name in finding["layers"]}
    slower = _slower([row for row in rows if row["name"] not in told], total, wanted)
    findings = [*_without_kernel(islands, other), *other, *_pairs(after), *slower]
    instead = "openvino" if target.runtime == "onnxruntime" else "onnxruntime"
    for finding in findings:
        finding["do"] = finding["do"].replace("OTHER", f"--target {instead}")
    return {
        "why": "slow",
        "package": str(package.folder),
        "target": str(target),
        "before_ms": _time(before),
        "after_ms": total,
        "layers": rows,
        "operators": dict(sorted(Counter(node.operator for node in after).items())),
        "shares": shares,
        "findings": sorted(findings, key=lambda finding: -finding["time_ms"]),
        "verdict": _verdict(_time(before), total, shares, rows),
    }


def _time(nodes: Iterable[Node]) -> float:
    return sum(node.time_ms for node in nodes)


def _verdict(before: float, after: float, shares: dict[str, float], rows: list[JsonObject]) -> str:
    most = max(rows, key=lambda row: (row["arithmetic"] != ["convert"], row["after_ms"] or 0.0))
    integer, floating, converting = (f"{share:.0%}" for share in shares.values())
    return (
        f"{before:.3g} ms became {after:.3g} ms: {integer} of it in integer kernels, {floating} in float, {converting} "
        f"in conversions between them; most of all in {most['name']}, {most['after_ms'] / after:.0%}."
    )


def _rows(before: list[Node], after: list[Node]) -> list[JsonObject]:
    """Every module of either graph, in the order in which the package runs them."""
    times = times_by_module(before), times_by_module(after)
    rows = []
    for name in dict.fromkeys((*times[1], *times[0])):
        old, new = times[0].get(name), times[1].get(name)
        mine = [node for node in after if node.module == name]
        rows.append(
            {
                "name": name,
                "before_ms": old,
                "after_ms": new,
                "ratio": old / new if old and new else None,
                "operators": list(dict.fromkeys(node.operator for node in mine)),
                "arithmetic": sorted({node.arithmetic for node in mine}),
            }
        )
    return rows


# ------------------------------------------------------------------------------------------------------------- findings


def _islands(nodes: list[Node], wanted: dict[str, bool]) -> list[JsonObject]:
    """Float operators that get their values from integers and give them back to integers: both ways cost."""
    by_name = {node.name: node for node in nodes}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.reads:
            readers.setdefault(name, []).append(node)

    def around(node: Node) -> list[Node]:
        return [*(by_name[name] for name in node.reads if name in by_name), *readers.get(node.name, [])]

    found = []
    for island in _connected([node for node in nodes if node.arithmetic == "float"], around):
        inside = {node.name for node in island}
        reads = [by_name[name] for node in island for name in node.reads if name in by_name and name not in inside]
        gives = [node for one in island for node in readers.get(one.name, []) if node.name not in inside]
        fed = any(n.arithmetic == "integer" or any(name in by_name for name in n.reads) for n in reads)
        if not fed or not gives:  # a dequantizer that reads no node is a weight's
            continue
        conversions = {n.name: n for n in (*reads, *gives) if n.arithmetic == "convert"}
        layers = [name for name in dict.fromkeys(node.module for node in island) if name in wanted]
        upstream = _computing(reads, lambda node: [by_name[name] for name in node.reads if name in by_name])
        downstream = _computing(gives, lambda node: readers.get(node.name, []))
        keep = " ".join(f"--keep {name}" for name in dict.fromkeys((*upstream, *downstream)) if name in wanted)
        left = [name for name in layers if not wanted[name]]
        what = ", ".join(layers or dict.fromkeys(node.operator for node in island))
        instead = f"leave its neighbours in float too: {keep}" if keep else "leave the layers around it in float too"
        found.append(
            {
                "kind": "island",
                "layers": layers or list(dict.fromkeys(node.module for node in island)),
                "time_ms": _time(island) + _time(conversions.values()),
                "what": f"{what} in float between integers: values are converted on both sides",
                "do": f"quantize {', '.join(left)}, or {instead}" if left else f"try OTHER, or {instead}",
            }
        )
    return found


def _connected(nodes: list[Node], around: Callable[[Node], list[Node]]) -> list[list[Node]]:
    """The nodes in groups that hang together, each in the graph's order."""
    left = {node.name: node for node in nodes}
    groups = []
    while left:
        todo, group = [next(iter(left.values()))], set()
        while todo:
            node = todo.pop()
            if left.pop(node.name, None) is not None:
                group.add(node.name)
                todo += [near for near in around(node) if near.name in left]
        groups.append([node for node in nodes if node.name in group])
    return groups


def _computing(start: list[Node], following: Callable[[Node], list[Node]]) -> list[str]:
    """The modules of the first nodes on each way that compute, past what only converts or moves numbers."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    todo = list(start)
    while todo:
        node = todo.pop(0)
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.arithmetic == "convert" or any(word in node.operator for word in _MOVES):
            todo += following(node)
        else:
            found[node.module] = None
    return list(found)


def _is_product(node: Node) -> bool:
    return any(word in node.operator for word in ("Conv", "Gemm", "MatMul", "FullyConnected"))


def _pairs(nodes: list[Node]) -> list[JsonObject]:
    """A quantizer that is read by dequantizers alone: values are rounded, and nothing is computed in integers."""
    found = []
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        readers = [reader for reader in nodes if node.name in reader.reads]
        if node.arithmetic != "convert" or not readers or any(r.arithmetic != "convert" for r in readers):
            continue
        near = [by_name[name].module for name in node.reads if name in by_name]
        near += [n.module for n in nodes if any(reader.name in n.reads for reader in readers)]
        layers = list(dict.fromkeys(near))
        found.append(
            {
                "kind": "pair",
                "layers": layers,
                "time_ms": node.time_ms + _time(readers),
                "what": f"values are rounded at {', '.join(layers)} and go on in float: nothing is gained",
                "do": f"leave both sides in float: {' '.join(f'--keep {name}' for name in layers)}; or try OTHER",
            }
        )
    return found


def _other_arithmetic(nodes: list[Node], wanted: dict[str, bool]) -> list[JsonObject]:
    """Layers that the runtime computes otherwise than the file wants."""
    found = []
    for name, integer in wanted.items():
        mine = [node for node in nodes if node.module == name and (_is_product(node) or node.operator == "Subgraph")]
        kinds = {node.arithmetic for node in mine}
        operators = ", ".join(dict.fromkeys(node.operator for node in mine))
        if integer and kinds == {"float"}:
            apart = any(node.module == name and node.operator == "Add" for node in nodes)
            why = (
                "its bias is added in float, being too large for its integers"
                if apart
                else "it found no integer kernel"
            )
            what = f"{name} is quantized, but ran in float ({operators}): {why}"
            do = f"--keep {name} leaves it in float and saves its rounding; or try OTHER"
        elif not integer and kinds == {"integer"}:
            what = f"{name} is float in the file, but the runtime rounded its weights and ran {operators}"
            do = f"its accuracy is the runtime's doing: quantize {name} in the recipe, or look with --why wrong"
        else:
            continue
        kind = "float" if integer else "rounded"
        found.append({"kind": kind, "layers": [name], "time_ms": _time(mine), "what": what, "do": do})
    return found


def _without_kernel(islands: list[JsonObject], other: list[JsonObject]) -> list[JsonObject]:
    """The islands but for those that are one layer without an integer kernel: it is named, with all their time."""
    fallen = {finding["layers"][0]: finding for finding in other if finding["kind"] == "float"}
    left = []
    for island in islands:
        finding = fallen.get(island["layers"][0]) if len(island["layers"]) == 1 else None
        if finding is None:
            left.append(island)
        else:
            finding["time_ms"] = island["time_ms"]
    return left


def _slower(rows: list[JsonObject], total: float, wanted: dict[str, bool]) -> list[JsonObject]:
    """Layers that take clearly longer than in the original, by their time lost."""
    found = []
    for row in rows:
        old, new = row["before_ms"], row["after_ms"]
        if not old or not new or new < _SLOWER * old or new - old < _MATTERS * total:
            continue
        name = row["name"]
        if "integer" in row["arithmetic"]:
            do = f"--keep {name} leaves it in float; or try OTHER" if name in wanted else "try OTHER"
        else:
            do = "other channel counts may suit the kernel better; or try OTHER"
        what = f"{name} takes {new / old:.1f}x as long as before ({', '.join(row['operators'])})"
        found.append({"kind": "slower", "layers": [name], "time_ms": new - old, "what": what, "do": do})
    return found


def _several(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"
