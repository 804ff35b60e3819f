"""Each promise of SECURITY.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_promise_names_a_test_that_exists():
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    file = ""  # a name without one is of the file before it
    for row in rows:
        named = re.findall(r"`((?:tests/\w+\.py)?(?:::\w+)?)`", row.split("|")[2])
        assert named, row
        for path, _, test in (name.partition("::") for name in named):
            file = path or file
            assert (ROOT / file).is_file(), file
            assert not test or f"def {test}(" in (ROOT / file).read_text(), test
