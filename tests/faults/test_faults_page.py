"""The page that lists the faults names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_names_its_test() -> None:
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| what happens")]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"(?:tests|benchmarks)/[\w/]+\.py", row.split("|")[3])
        assert named and all((ROOT / name).is_file() for name in named), row
