"""``import laconic`` and ``laconic --help``: seconds, and what they load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import records

RUNS = 7
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "rich")
_LIST = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
_HELP = "import contextlib; from laconic import cli\nwith contextlib.suppress(SystemExit): cli.main(['--help'])"
COMMANDS = {
    "import laconic": [sys.executable, "-c", f"import laconic\n{_LIST}"],
    "laconic --help": [sys.executable, "-c", f"{_HELP}\n{_LIST}"],
}


def main(folder: Path) -> dict[str, Any]:
    rows = []
    for name, command in COMMANDS.items():
        times, loaded = [], []
        for _ in range(RUNS):
            start = time.perf_counter()
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            times.append(time.perf_counter() - start)
            loaded = json.loads(output.splitlines()[-1])
        row = {"command": name, "seconds": sorted(times), "heavy": [module for module in HEAVY if module in loaded]}
        print(row)
        rows.append(row)
    return records.write(folder, "startup", {"rows": rows})


if __name__ == "__main__":
    main(records.FOLDER)
