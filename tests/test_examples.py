"""Every example runs on few data and leaves its picture; the README's Python runs as it stands there."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example(script, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [str(script), "--quick", str(picture)])
    runpy.run_path(str(script), run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip()


def shape_of(text: str) -> str:
    """A printed result without its digits, which differ from machine to machine in the last places."""
    return re.sub(r"-?\d+(\.\d+)?", "#", text.strip())


def test_readme(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    printed = None
    checked = 0
    for language, code in blocks:
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, "README.md", "exec"), names)
            printed = out.getvalue()
        elif printed:
            assert shape_of(printed) == shape_of(code)
            printed, checked = None, checked + 1
    assert checked == 2
    assert names["edited"].shape == (8, 1, 8, 8) and names["new"].shape == (64, 1, 8, 8)
