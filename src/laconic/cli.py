"""The command line: parse, call :mod:`laconic.app`, print. Eight commands, one vocabulary.

Exit codes: 0 done (certified), 1 something failed, 2 bad input, 3 done but uncertified, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from laconic import __version__
from laconic.errors import InputError, LaconicError, ResourceError

_TARGET = "onnxruntime:cpu,threads=1,batch=1"
_MODEL = "torchvision:NAME[@W.safetensors], timm:NAME[@...], zoo:NAME[@...], FILE.py:FACTORY or FILE.onnx"
_DATA = "digits, an image folder, FILE.parquet, a folder of idx files, FILE.npz or FILE.py:FACTORY"


class _Parser(argparse.ArgumentParser):
    """One line per mistake."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message, fix=f"see '{self.prog} --help'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        options = _parser().parse_args(arguments)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see laconic.worker.environment
        from laconic import app  # the commands bring what they need

        code: int = getattr(app, options.command)(options)
        return code
    except LaconicError as error:
        print(f"laconic: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("laconic: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    """A full disk, in one line; an internal fault, whose traceback is kept in a file and named."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(f"laconic: {error.strerror}; what was finished is kept", file=sys.stderr)
        return ResourceError.exit_code
    with tempfile.NamedTemporaryFile("w", prefix="laconic-", suffix=".log", delete=False) as log:
        traceback.print_exception(error, file=log)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"laconic: internal error: {reason}; traceback in {log.name}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    text = "The smallest or fastest model above an accuracy floor, on your runtime, with the evidence."
    parser = _Parser(prog="laconic", description=text, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"laconic {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_shrink(commands)
    _add_eval(commands)
    run = _add(commands, "run", "run a package, or a packed model, on pictures or arrays")
    run.add_argument("package", type=Path, metavar="PACKAGE|FILE.lac")
    run.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="pictures, or .npy arrays")
    run.add_argument("--top", type=int, default=5, metavar="N", help="how many labels per input (default 5)")
    _add_profile(commands)
    export = _add(commands, "export", "write a package's model for a target")
    export.add_argument("package", type=Path, metavar="PACKAGE")
    export.add_argument("--target", required=True, metavar="T", help=f"for example {_TARGET}; lac packs it")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    explain = _add(commands, "explain", "print a package's report, or say why it is slow, or wrong")
    explain.add_argument("package", type=Path, metavar="PACKAGE")
    explain.add_argument("--why", choices=("slow", "wrong"), help="slow: where its time goes; wrong: its accuracy")
    _add_samples(explain, required=False)
    _add(commands, "doctor", "list what is installed, what is missing, every step, and what the processor can do")
    demo = _add(commands, "demo", "train a small network, shrink it, show what happened")
    demo.add_argument("--out", type=Path, default=Path("laconic-demo"), metavar="DIR")
    return parser


def _add(commands: argparse._SubParsersAction[_Parser], name: str, text: str) -> _Parser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object, last, on standard output")
    return parser


def _add_samples(parser: _Parser, required: bool = True) -> None:
    parser.add_argument("--data", required=required, metavar="DATA", help=_DATA)
    parser.add_argument("--preprocess", type=Path, metavar="FILE", help="pre-processing of pictures, as YAML")
    parser.add_argument("--max-corrupt", default="1%", metavar="P", help="share of pictures that may be unreadable")


def _add_data(parser: _Parser) -> None:
    _add_samples(parser)
    parser.add_argument("--target", default=None, metavar="T", help=f"default {_TARGET}")
    parser.add_argument("--max-drop", metavar="P", help="the floor: 1%% is one point, 1%%rel a hundredth of the score")
    parser.add_argument("--confidence", default="95%", metavar="P")


def _add_shrink(commands: argparse._SubParsersAction[_Parser]) -> None:
    shrink = _add(commands, "shrink", "find the smallest or fastest form of a model above a floor")
    shrink.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_data(shrink)
    shrink.add_argument("--out", type=Path, required=True, metavar="DIR", help="the package; the same DIR continues")
    shrink.add_argument("--minimize", default="latency", metavar="WHAT", help="latency, size or macs")
    shrink.add_argument("--max-latency", metavar="T", help="5ms, or 60%% of the original's")
    shrink.add_argument("--max-size", metavar="S", help="1MB, or 25%% of the original's")
    shrink.add_argument("--budget", default="10m", metavar="B", help="10m, 90s, 40trials; 0 with --recipe")
    shrink.add_argument("--no-train", action="store_true", help="change no weight by training")
    shrink.add_argument("--keep", action="append", default=[], metavar="GLOB", help="layers to leave alone")
    shrink.add_argument("--recipe", type=Path, metavar="FILE", help="apply this recipe, without a search")
    shrink.add_argument("--expect-score", metavar="P", help="stop unless the original scores this")
    shrink.add_argument("--seed", type=int, default=0, metavar="N")


def _add_eval(commands: argparse._SubParsersAction[_Parser]) -> None:
    evaluate = _add(commands, "eval", "score and time a package or a model; re-certify a package")
    evaluate.add_argument("subject", metavar="PACKAGE|FILE.lac|MODEL")
    _add_data(evaluate)


def _add_profile(commands: argparse._SubParsersAction[_Parser]) -> None:
    profile = _add(commands, "profile", "say what a model costs, layer by layer: counted, modelled, and timed")
    profile.add_argument("model", metavar="MODEL|PACKAGE", help=_MODEL)
    _add_samples(profile, required=False)
    profile.add_argument("--input", metavar="SHAPE", help="the input without the batch, for example 3x224x224")
    profile.add_argument("--target", metavar="T", help=f"default {_TARGET}, or the package's own")
    profile.add_argument("--cache", default="1MB", metavar="S", help="what the modelled cache holds (default 1MB)")
    profile.add_argument("--top", type=int, default=20, metavar="N", help="how many layers to print (default 20)")
    profile.add_argument("--out", type=Path, metavar="DIR", help="write profile.svg and profile.html there")


if __name__ == "__main__":
    sys.exit(main())
