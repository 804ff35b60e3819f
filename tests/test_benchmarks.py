"""The benchmarks that train run on few data, keep what they have measured, and do not measure it twice."""

import json
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ppgen import catalogue
from ppgen.data import load
from ppgen.inference import History, log_likelihood
from ppgen.runs import save_run

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(script, out, monkeypatch, capsys, *options):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    argv = [script, "--quick", "--threads", "1", "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "options", "num_cells"),
    [("semi_supervised.py", ["--labels", "100"], 4), ("features.py", ["--draws", "1"], 18)],
)
def test_cells_are_measured_once(script, options, num_cells, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.json"
    first = run(script, out, monkeypatch, capsys, *options)
    cells = json.loads(out.read_text())["cells"]
    assert len(cells) == num_cells and all(0 < cell["error"] < 95 for cell in cells)
    assert first.count(" labels: ") == num_cells
    second = run(script, out, monkeypatch, capsys, *options)
    assert second.count(" labels: ") == 0 and second.strip() and first.endswith(second)
    assert json.loads(out.read_text())["cells"] == cells


@pytest.mark.slow
def test_lower_precision_is_compared_with_float32_image_by_image(tmp_path, monkeypatch, capsys):
    out = tmp_path / "precision.json"
    few = ["--data", "digits", "--epochs", "2", "--seeds", "2", "--data-count", "50", "--threads", "1"]
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["precision.py", *few, "--out", str(out)])
    runpy.run_path(str(BENCHMARKS / "precision.py"), run_name="__main__")
    full, half = json.loads(out.read_text())["cells"]
    assert full["precision"] == "float32" and full["difference_nats"] == 0 < full["deviation_of_float32"]
    assert half["precision"] == "bf16" and 0 < abs(half["difference_nats"]) < 2
    assert all(cell["standard_error"] > 0 for cell in half["seeds"])


def test_the_latest_cell_of_each_precision_is_a_row(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = runpy.run_path(str(BENCHMARKS / "report.py"))
    about = {"device": "cpu", "data": "mnist", "epochs": 10, "standard_error": 0.2, "deviation_of_float32": 0.4}
    about |= {"seeds": [{}, {}], "time_ratio": [0.5, 0.75], "precision": "bf16"}
    cells = [about | {"difference_nats": -1.0}, about | {"difference_nats": -0.5}, about | {"precision": "float32"}]
    (tmp_path / "precision.json").write_text(json.dumps({"cells": cells}))
    rows = report["precisions"](report["Results"](tmp_path))[2:]
    assert rows[0] == "| bf16, mnist, 10 epochs, cpu | -0.50 ± 0.20 | 2 | 0.40 | 0.50 to 0.75 |"
    assert "one GPU | not measured" in rows[1] and len(rows) == 2


def test_the_papers_errors_stand_beside_those_of_mnist_only(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = runpy.run_path(str(BENCHMARKS / "semi_supervised.py"))["table"]
    cell = {"model": "m1+m2", "labels": 600, "error": 4.09, "epochs": {"m1": 1, "m1+m2": 2}, "seed": 0, "seconds": 9}
    assert "4.09    2.59   +1.50" in table([cell | {"data": "mnist"}])
    assert "2.59" not in table([cell | {"data": "digits"}])


def test_no_cell_is_lost_where_several_add_to_one_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from record import Record

    def add(who):
        record = Record(tmp_path / "results.json", {"what": "a test"})
        for i in range(15):
            record.add(who=who, i=i)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    content = json.loads((tmp_path / "results.json").read_text())
    assert sorted((c["who"], c["i"]) for c in content["cells"]) == [(who, i) for who in range(4) for i in range(15)]
    assert content["what"] == "a test" and [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert {"torch", "pyro-ppl", "zuko"} <= set(content["cells"][0]["versions"])


def test_code_is_called_changed_where_it_is_and_not_where_results_are(tmp_path):
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    written, code = (folder / "results" / "a.json", tmp_path / "README.md"), folder / "code.py"
    for path in (*written, code):
        path.write_text("before")

    def git(*arguments):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *author, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "a test")
    head = git("rev-parse", "--short=10", "HEAD").stdout.strip()
    commit = runpy.run_path(str(BENCHMARKS / "record.py"))["commit"]
    for path in (*written, tmp_path / "untracked"):
        path.write_text("after")
    assert commit(folder) == head
    code.write_text("after")
    assert commit(folder) == f"{head}-dirty"


def test_a_run_is_measured_on_data_in_the_form_that_it_was_trained_on(tmp_path, monkeypatch, capsys):
    settings = {"decoder": "normal", "latent_dim": 2, "hidden": (4,)}
    recipe = catalogue.Recipe("vae", (1, 8, 8), settings=settings)
    source = {"name": "digits", "binarization": "none"}
    save_run(tmp_path / "run", recipe.build(), recipe, data=source, training={"epochs": 1}, history=History())
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import trust

    seen = []

    def estimate(pair, x, **_):
        seen.append(x)
        return log_likelihood(pair, x, num_samples=2)

    for name in ("log_likelihood", "repaired_log_likelihood", "ais"):
        monkeypatch.setattr(trust, name, estimate)
    bounds = SimpleNamespace(
        data=[torch.rand(5, 1, 8, 8)], lower=torch.zeros(5), upper=torch.ones(5), gap=1.0, gap_standard_error=0.1
    )
    monkeypatch.setattr(trust, "bdmc", lambda *_, **__: bounds)
    trust.main(tmp_path / "run", 5, 2, 2, 2, tmp_path / "trust.json")
    assert len(json.loads((tmp_path / "trust.json").read_text())["cells"]) == 5
    assert torch.equal(seen[0], load("digits", binarize="none").test[:5] / 16)
