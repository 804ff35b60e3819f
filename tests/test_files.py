"""What is written is whole or as it was, and an error is told by its first words."""

import csv
import json

import pytest

from ppgen.errors import first_line
from ppgen.files import write_csv, write_json


class Unwritable:
    """What fails in the middle of a table."""

    def __str__(self):
        raise RuntimeError("no words for it")


def test_a_table_that_fails_half_way_leaves_the_one_before(tmp_path):
    path = tmp_path / "table.csv"
    rows = [{"name": "Fréchet", "log_likelihood": -81.4, "runs": [1]}, {"name": "b, c"}]
    write_csv(path, rows, ["name", "log_likelihood"])
    before = path.read_bytes()
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["name", "log_likelihood"], ["Fréchet", "-81.4"], ["b, c", ""]]
    with pytest.raises(RuntimeError, match="no words for it"):
        write_csv(path, [*rows, {"name": Unwritable()}], ["name"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_replaced_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "out.json").mkdir()
    with pytest.raises(OSError, match=r"out\.json"):
        write_json(tmp_path / "out.json", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    write_json(tmp_path / "b.json", {"a": float("nan")})
    assert json.loads((tmp_path / "b.json").read_text()) == {"a": None}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("\n  \nsizes differ\n(3, 4)"), "sizes differ"),
        (RuntimeError(), "RuntimeError"),
        (KeyError("slope"), "'slope'"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error, said):
    assert first_line(error) == said
