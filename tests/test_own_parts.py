"""Parts of a user's own in a run: used by import path, written down, and loaded only where they are allowed."""

import csv
import importlib
import json
import sys

import pytest
import torch
from command import call

from ppgen import cli
from ppgen.catalogue import Recipe
from ppgen.inference import History
from ppgen.runs import load_run, save_run

SOURCE = """
import torch
from torch import nn
from torch.distributions import Independent, Laplace

class Peaked(nn.Module):
    def __init__(self, latent_dim):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, *context):
        return Independent(Laplace(0.0, self.log_scale.exp()), 1)

class Flat(Peaked):
    def forward(self, *context):
        return Laplace(0.0, self.log_scale.exp())

class Wild(Peaked):
    def forward(self, *context):
        raise FloatingPointError("it diverged")

class Stopped(Peaked):
    def forward(self, *context):
        raise KeyboardInterrupt

class Narrow(nn.Module):
    def __init__(self, net):
        super().__init__()

    @staticmethod
    def num_outputs(latent_dim):
        return 2 * latent_dim

class Picky(nn.Module):
    def __init__(self, latent_dim):
        raise ValueError(f"Picky: latent_dim must be even, got {latent_dim}.")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("mine", None)


def test_a_run_with_a_foreign_part_is_loaded_only_if_it_is_allowed(module, tmp_path):
    recipe = Recipe("vae", (1, 3, 3), settings={"prior": "mine:Peaked", "latent_dim": 2, "hidden": (4,)})
    pair = recipe.build()
    with torch.no_grad():
        pair.prior.log_scale += 1
    save_run(tmp_path / "run", pair, recipe, data={}, training={}, history=History())
    del sys.modules["mine"]
    with pytest.raises(ValueError, match=r"mine:Peaked.*--allow mine:Peaked"):
        load_run(tmp_path / "run")
    assert "mine" not in sys.modules
    again = load_run(tmp_path / "run", ["mine:Peaked"]).pair
    assert torch.equal(again.prior.log_scale, torch.ones(2))


def test_a_refused_cell_is_a_row_with_its_reason(module, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    options = ["--epochs", "1", "--warmup", "0", "--patience", "0", "--num-samples", "5", "--latent-dim", "3"]
    arguments = ["ppgen", "compare", "--prior", "mine:Peaked,mine:Picky", "--posterior", "diagonal", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments + options)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "Refused: mine:Picky + diagonal: Picky: latent_dim must be even, got 3." in capsys.readouterr().out
    rows = (out / "comparison.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[2].startswith("mine:Picky + diagonal") and rows[2].endswith('got 3."')


COMPARE = ["--posterior", "diagonal", "--epochs", 1, "--warmup", 0, "--patience", 0, "--num-samples", 5, "--hidden", 4]


def test_what_was_measured_outlasts_whatever_fails_after_it(module, tmp_path, capsys):
    priors = "mine:Peaked,mine:Flat,mine:Wild,mine:Stopped,standard"
    status, _, err = call(capsys, "compare", "--prior", priors, *COMPARE, "--out", tmp_path / "out")
    assert status == 130, err
    rows = {row["prior"]: row for row in json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]}
    assert rows["mine:Peaked"]["log_likelihood"] < 0
    assert "plate('data')" in rows["mine:Flat"]["refused"]
    assert rows["mine:Wild"]["refused"] == "FloatingPointError: it diverged"
    assert rows["mine:Stopped"]["refused"] == rows["standard"]["refused"] == "not trained yet"
    with (tmp_path / "out" / "comparison.csv").open() as file:
        assert [row["prior"] for row in csv.DictReader(file)] == list(rows)


def test_a_posterior_that_cannot_be_imported_is_a_row_too(tmp_path, capsys):
    options = ["--prior", "standard", *COMPARE, "--posterior", "nowhere:Gone,diagonal", "--out", tmp_path / "out"]
    status, out, err = call(capsys, "compare", *options)
    assert status == 0 and "Refused: standard + nowhere:Gone: 'nowhere:Gone' cannot be imported" in out, err


def test_where_everything_fails_the_first_reason_is_the_error(module, tmp_path, capsys):
    status, _, err = call(capsys, "compare", "--prior", "mine:Wild", *COMPARE, "--out", tmp_path / "out")
    assert status == 2 and "Every combination was refused" in err and "it diverged" in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("path", ["nowhere:Prior", "torch:NoSuchPrior", "no module:X"])
def test_what_cannot_be_imported_is_named(path):
    with pytest.raises(ValueError, match=f"{path}.*cannot be imported"):
        Recipe("vae", (4,), settings={"prior": path, "latent_dim": 2, "hidden": (4,)}).build()


@pytest.mark.parametrize("kind", ["prior", "posterior"])
@pytest.mark.parametrize("path", ["os:system", "os:sep", "builtins:int", "torch.nn:functional"])
def test_what_is_no_class_of_modules_is_named_and_not_called(kind, path):
    with pytest.raises(ValueError, match=rf"'{path}' is .*must be a class of torch\.nn\.Module"):
        Recipe("vae", (4,), settings={kind: path, "latent_dim": 2, "hidden": (4,)}).build()


@pytest.mark.parametrize(
    ("kind", "path", "facts"),
    [
        ("prior", "torch.nn:Linear", r"prior 'torch\.nn:Linear' is made as Linear\(latent_dim\): .*out_features"),
        ("posterior", "mine:Narrow", r"posterior 'mine:Narrow' is made as Narrow\(net, latent_dim\): "),
        ("posterior", "mine:Peaked", r"posterior 'mine:Peaked' .*num_outputs\(latent_dim\)"),
    ],
)
def test_a_class_that_is_made_otherwise_is_named_with_how_parts_are_made(module, kind, path, facts):
    with pytest.raises(ValueError, match=facts):
        Recipe("vae", (4,), settings={kind: path, "latent_dim": 2, "hidden": (4,)}).build()
