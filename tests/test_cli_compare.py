"""``ppgen compare``: pairs of parts or whole models in one table, and models that fail in a row of their own."""

import csv
import functools
import json

import pytest
from command import call

from ppgen import catalogue
from ppgen.cli import lineup

SMALL = ["--data", "digits", "--latent-dim", "2", "--num-components", "5", "--hidden", "8"]


def test_compare_takes_hierarchies(capsys, tmp_path):
    status, out, err = call(
        capsys, "compare", *SMALL, "--model", "hvae", "--prior", "vamp", "--posterior", "diagonal", "--epochs", 1,
        "--warmup", 0, "--patience", 0, "--num-samples", 5, "--out", tmp_path / "c",
    )  # fmt: skip
    assert status == 0 and "vamp" in out, err
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["model"] == "hvae"


def test_compare_writes_the_table_and_the_pictures(capsys, tmp_path):
    status, out, err = call(
        capsys, "compare", *SMALL, "--prior", "standard,vamp", "--posterior", "diagonal,iaf", "--epochs", 2,
        "--warmup", 0, "--patience", 0, "--num-samples", 30, "--out", tmp_path / "c",
    )  # fmt: skip
    assert status == 0, err
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        "comparison.csv",
        "comparison.json",
        "comparison.png",
        "samples.png",
    }
    rows = list(csv.DictReader((tmp_path / "c" / "comparison.csv").open()))
    assert [(r["prior"], r["posterior"]) for r in rows].count(("vamp", "iaf")) == 1 and len(rows) == 4
    values = [float(r["log_likelihood"]) for r in rows]
    assert values == sorted(values, reverse=True)
    assert float(rows[0]["difference"]) == 0.0
    for row in rows:
        assert float(row["difference"]) == pytest.approx(float(row["log_likelihood"]) - values[0], abs=1e-6)
        assert float(row["elbo"]) <= float(row["log_likelihood"])
    assert "Best: " in out and "diagonal encoder of its own" in err


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0.0), (3, 1.0)])
def test_a_short_comparison_has_a_short_warm_up(epochs, warmup, capsys, tmp_path):
    options = ["--prior", "standard", "--posterior", "diagonal", "--epochs", epochs, "--num-samples", 5]
    status, _, err = call(capsys, "compare", *SMALL, *options, "--out", tmp_path / "c")
    assert status == 0, err
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["warmup"] == warmup


@pytest.mark.parametrize(("table", "models"), [("comparison.json", []), ("models.json", ["--models", "vae,gan"])])
def test_a_comparison_is_not_overwritten(table, models, capsys, tmp_path):
    (tmp_path / table).write_text("of yesterday")
    status, out, err = call(capsys, "compare", *models, "--out", tmp_path)
    assert status == 2 and f"--out {tmp_path}" in err and table in err and out == "" and err.count("\n") == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of yesterday"]


@pytest.mark.slow
def test_compare_puts_models_of_all_kinds_in_one_table(capsys, tmp_path):
    status, out, err = call(
        capsys, "compare", "--models", "vae,cvae,pixelcnn,vqvae,ae,gan", "--hidden", 8, "--epochs", 1, "--warmup", 0,
        "--patience", 0, "--num-samples", 5, "--seeds", 2, "--out", tmp_path / "m",
    )  # fmt: skip
    assert status == 0, err
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"models.csv", "models.json", "models.png"}
    rows = {row["name"]: row for row in json.loads((tmp_path / "m" / "models.json").read_text())["rows"]}
    assert [len(row["runs"]) for row in rows.values()] == [2] * 6
    assert [name for name, row in rows.items() if row["given_class"]] == ["cvae"] and " | y" in out
    # What a model does not have has no number, and what it has is one.
    assert {n for n, row in rows.items() if row["log_likelihood"] is None} == {"ae", "gan"}
    assert {n for n, row in rows.items() if row["reconstruction_rmse"] is None} == {"pixelcnn", "gan"}
    assert {n for n, row in rows.items() if row["precision"] is None} == {"ae"}
    assert rows["vqvae"]["discrete_latent"] and not rows["vae"]["discrete_latent"]
    assert rows["vqvae"]["latent"] == "4×4" and rows["vae"]["latent"] == "8" and rows["pixelcnn"]["latent"] is None
    assert rows["vqvae"]["is_lower_bound"] and not rows["pixelcnn"]["is_lower_bound"]
    assert all(row["Fréchet_range"] >= 0 for name, row in rows.items() if name != "ae")
    assert "pixelcnn" in out and "4×4" in out


def test_a_model_that_fails_is_a_row_of_its_own(monkeypatch, capsys, tmp_path):
    """The first model trains; the second diverges with one seed and breaks with the other; the third is interrupted."""

    def broken(pair, data, validation, *, epochs=1, seed=0, progress=True):
        raise FloatingPointError("it diverged") if seed == 0 else KeyError("loc")

    def stopped(pair, data, validation, *, seed=0, progress=True):
        raise KeyboardInterrupt

    for name, train in (("wgan", broken), ("gan", stopped)):
        monkeypatch.setitem(catalogue.MODELS, name, catalogue.MODELS[name]._replace(train=train))
    monkeypatch.setattr("ppgen.cli.lineup.trained_classifier", lambda loaded, epochs, seed: None)
    out, few = tmp_path / "m", ["--hidden", 4, "--epochs", 1, "--warmup", 0, "--patience", 0, "--num-samples", 5]
    status, _, err = call(capsys, "compare", "--models", "vae,wgan,gan", *few, "--out", out)
    assert status == 130, err
    rows = {row["name"]: row for row in json.loads((out / "models.json").read_text())["rows"]}
    assert rows["vae"]["log_likelihood"] < 0 and rows["vae"]["refused"] is None
    assert rows["wgan"]["diverged"] == 1 and rows["wgan"]["refused"] == "KeyError: 'loc'"
    assert rows["gan"]["refused"] == "not trained yet"
    assert rows["vae"]["settings"]["hidden"] == [4] and rows["wgan"]["settings"]["epochs"] == 1
    assert "hidden" not in rows["wgan"]["settings"] and "warmup" not in rows["wgan"]["settings"]
    assert [row["name"] for row in csv.DictReader((out / "models.csv").open())] == list(rows)
    status, said, err = call(
        capsys, "compare", "--models", "wgan", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "n"
    )
    assert status == 0 and "1 diverged" in said, err


def test_a_model_that_fails_with_one_seed_keeps_the_figures_of_the_other(monkeypatch, capsys, tmp_path):
    vae = catalogue.MODELS["vae"]

    def broken(*data, seed=0, **options):
        return vae.train(*data, seed=seed, **options) if seed == 1 else {}["loc"]

    monkeypatch.setitem(catalogue.MODELS, "vae", vae._replace(train=functools.wraps(vae.train)(broken)))
    monkeypatch.setattr("ppgen.cli.lineup.trained_classifier", lambda loaded, epochs, seed: None)
    few = ["--hidden", 4, "--epochs", 1, "--warmup", 0, "--patience", 0, "--num-samples", 5]
    status, out, err = call(capsys, "compare", "--models", "vae", "--seeds", 2, *few, "--out", tmp_path)
    assert status == 0 and "Refused: vae: KeyError: 'loc'" in out, err
    (row,) = json.loads((tmp_path / "models.json").read_text())["rows"]
    assert row["log_likelihood"] < 0 and row["refused"] == "KeyError: 'loc'"


def test_a_mean_with_a_bound_in_it_is_one_and_a_single_seed_has_no_range():
    runs = [{"seconds": 1.0, "log_likelihood": -1.0, "is_lower_bound": i > 0, "Fréchet_distance": i} for i in range(3)]
    figures = lineup._summary(runs)
    assert figures["is_lower_bound"] is True and figures["Fréchet_range"] == 2
    figures = lineup._summary(runs[:1])
    assert figures["is_lower_bound"] is False and figures["Fréchet_range"] is None
    assert lineup._summary([{"seconds": 1.0}])["is_lower_bound"] is None
