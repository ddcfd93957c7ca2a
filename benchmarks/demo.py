"""``laconic demo``, as ``make demo`` runs it: seconds, what became of the network, and the README's picture."""

from __future__ import annotations

import datetime
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import records
from laconic.pack import package

PICTURE = records.ROOT / "docs" / "demo.svg"


def main(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        out, start = Path(scratch) / "laconic-demo", time.monotonic()
        summary = records.laconic("demo", "--out", out)
        seconds = time.monotonic() - start
        made = package.read(out / "package")
        trials = [t for t in made.manifest["trials"] if t["recipe"]]
        shutil.copyfile(out / "front.svg", PICTURE)
    found = {
        "seconds": round(seconds, 1),
        "first_package_seconds": made.manifest["first_package_seconds"],
        "trials": len(trials),
        "model": made.manifest["model"]["source"].partition("@")[0],
        "shrink": summary,
    }
    print(json.dumps(found, indent=1), datetime.datetime.now(datetime.UTC).isoformat())
    return records.write(folder, "demo", found)


if __name__ == "__main__":
    main(records.FOLDER)
