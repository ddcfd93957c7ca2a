"""What the documents say is so: the defaults that they show, the tables that scripts write, the links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.tables import PAGES, TABLES, with_tables
from laconic.core import Preprocess
from laconic.data import read_yaml

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_preprocessing_that_is_shown_is_the_default(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "preprocessing.md").read_text(), flags=re.DOTALL)
    (tmp_path / "shown.yaml").write_text(shown)
    assert read_yaml(tmp_path / "shown.yaml") == Preprocess()
    assert {line.partition(":")[0] for line in shown.splitlines() if ":" in line and line[0] != "#"} >= set(
        Preprocess().to_json()
    )


def test_the_tables_are_those_of_the_records() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    assert [with_tables(text) for text in texts] == texts
    assert sorted(re.findall(r"<!-- table (\w+) -->", "".join(texts))) == sorted(TABLES)


def test_a_table_that_was_edited_by_hand_is_caught() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    edited = re.sub(r"(\d)%", r"\g<1>1%", text, count=1)
    edited = re.sub(r"\*\*(\d+\.\d)x\*\*", "**99.9x**", edited, count=1)
    assert edited != text
    assert with_tables(edited) != edited


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert missing == []
