"""The command line as a user types it: runs that rebuild their model, a comparison, and one-line errors."""

import csv
import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call

from ppgen import catalogue, data
from ppgen.catalogue.training import keep_labels
from ppgen.cli import lineup
from ppgen.files import json_text
from ppgen.inference import fit
from ppgen.runs import load_run, save_run

SMALL = ["--data", "digits", "--latent-dim", "2", "--num-components", "5", "--hidden", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a VampPrior with a two-dimensional latent."""
    folder = tmp_path_factory.mktemp("runs") / "vamp"
    command = [
        sys.executable,
        "-m",
        "ppgen",
        "train",
        "vae",
        *SMALL,
        "--prior",
        "vamp",
        "--epochs",
        "2",
        "--out",
        folder,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_holds_what_rebuilds_it_and_what_one_looks_at(run):
    assert {p.name for p in run.iterdir()} == {
        "checkpoints",
        "config.json",
        "manifest.json",
        "model.safetensors",
        "history.json",
        "metrics.json",
        "log.txt",
        "losses.png",
        "samples.png",
        "reconstructions.png",
        "pseudo_inputs.png",
        "manifold.png",
        "traversals.png",
        "interpolations.png",
    }
    history = json.loads((run / "history.json").read_text())
    assert len(history["loss"]) == len(history["validation"]) == 2
    assert history["loss"][1] < history["loss"][0]
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["binarization"] == "dynamic"


def test_sharing_survives_the_round_trip(run):
    pair = load_run(run).pair
    assert pair.prior.posterior is pair.posterior
    assert not pair.training


def test_evaluate_prints_the_figures_and_repeats_itself(run, capsys):
    wanted = {
        "log_likelihood",
        "elbo",
        "mc_standard_error",
        "data_standard_error",
        "reliable_fraction",
        "num_samples",
        "num_data",
    }
    first = call(capsys, "evaluate", run, "--num-samples", 30, "--num-data", 50, "--json")
    second = call(capsys, "evaluate", run, "--num-samples", 30, "--num-data", 50, "--json")
    assert first == second
    figures = json.loads(first[1])
    assert wanted <= set(figures)
    assert (figures["num_samples"], figures["num_data"]) == (30, 50)
    assert figures["elbo"] <= figures["log_likelihood"] < 0


def test_sample_writes_a_picture(run, capsys, tmp_path):
    status, out, _ = call(capsys, "sample", run, "--num", 4, "--out", tmp_path / "s.png")
    assert status == 0 and "4 samples" in out
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_an_ending_is_called_what_it_becomes(run, capsys, tmp_path):
    status, out, _ = call(capsys, "sample", run, "--num", 4, "--out", tmp_path / "mine")
    assert status == 0 and f"4 samples in {tmp_path / 'mine.png'}" in out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    status, _, err = call(capsys, "sample", run, "--num", 4, "--out", tmp_path)
    assert status == 2 and f"--out {tmp_path} is a folder" in err


def test_figures_that_are_no_numbers_are_null(run, capsys):
    def no_json(constant):
        raise ValueError(f"{constant} is not JSON")

    status, out, err = call(capsys, "evaluate", run, "--num-samples", 5, "--num-data", 1, "--json")
    assert status == 0, err
    for text in (out, (run / "evaluation.json").read_text()):
        assert json.loads(text, parse_constant=no_json)["data_standard_error"] is None
    values = {"a": [float("nan"), 1.5], "b": (float("inf"), -float("inf"), 2), "c": True}
    assert json.loads(json_text(values)) == {"a": [None, 1.5], "b": [None, None, 2], "c": True}


def test_what_has_no_samples_is_told_so_before_anything_is_trained(capsys, tmp_path):
    options = ["--latent-dim", 2, "--hidden", 8, "--channels", "2,3", "--epochs", 1, "--out", tmp_path / "ae"]
    assert call(capsys, "train", "ae", *options)[0] == 0
    status, out, _ = call(capsys, "check", tmp_path / "ae")
    assert status == 0 and "no likelihood" in out and "judge" not in out
    for arguments in (["judge", tmp_path / "ae"], ["sample", tmp_path / "ae", "--out", tmp_path / "s.png"]):
        status, out, err = call(capsys, *arguments)
        assert status == 2 and "is of ae, which has no prior to draw samples from" in err and err.count("\n") == 1
    assert not (tmp_path / "s.png").exists()


@pytest.mark.parametrize("prior", catalogue.PRIORS)
@pytest.mark.parametrize("posterior", catalogue.POSTERIORS)
def test_every_recipe_survives_the_disk(prior, posterior, tmp_path):
    settings = {"prior": prior, "posterior": posterior, "latent_dim": 3, "num_components": 4, "hidden": (6,)}
    recipe = catalogue.Recipe("vae", (1, 4, 4), settings=settings)
    pair = recipe.build()
    save_run(tmp_path / "r", pair, recipe, data={}, training={}, history=fit(pair, torch.ones(4, 1, 4, 4), epochs=1))
    again = load_run(tmp_path / "r").pair
    state = again.state_dict()
    assert state.keys() == pair.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in pair.state_dict().items())
    if prior == "vamp":
        assert (again.prior.posterior is again.posterior) == again.posterior.scores_foreign_values


@pytest.mark.parametrize("model", catalogue.MODELS)
def test_every_model_trains_evaluates_and_samples_by_its_name(model, capsys, tmp_path):
    settings = catalogue.settings_of(catalogue.MODELS[model].build)
    sizes = {"latent-dim": 2, "num-components": 3, "hidden": 8, "channels": "2,3", "filters": 4, "num-layers": 1}
    chosen = [f"--{name}={value}" for name, value in sizes.items() if name.replace("-", "_") in settings]
    run = tmp_path / "run"
    chosen += ["--prior-epochs=1"] if model == "vqvae" else []
    status, out, err = call(capsys, "train", model, *chosen, "--epochs", 2, "--out", run)
    assert status == 0, err
    metrics = json.loads((run / "metrics.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["model"] == model and config["training"]["epochs"] == 2
    made = catalogue.MODELS[model]
    assert ("validation" in metrics) == made.scores and f"Written to {run}" in out
    if made.classifies:  # which are not given the class of what they are asked about
        assert metrics["kl"]["y"] < 2 < np.log(10)
    assert (run / "reconstructions.png").exists() == made.reconstructs
    again = load_run(run)
    assert all(not p.requires_grad or p.isfinite().all() for p in again.pair.parameters())
    status, out, err = call(capsys, "evaluate", run, "--num-samples", 5, "--num-data", 20, "--json")
    if not made.scores:
        assert status == 2 and ("density" in err or "no likelihood" in err)
        return
    assert status == 0 and ("error_rate" in json.loads(out)) == (model == "ss-vae"), err
    status, _, err = call(capsys, "sample", run, "--num", 12, "--out", tmp_path / "s.png")
    assert status == 0 and (tmp_path / "s.png").stat().st_size > 1000, err


def test_samples_of_a_model_of_classes_go_through_the_classes():
    recipe = catalogue.Recipe("cvae", (1, 2, 2), num_classes=3, settings={"latent_dim": 2, "hidden": (4,)})
    (context,) = recipe.context(6)
    assert context.argmax(-1).tolist() == [0, 0, 1, 1, 2, 2]
    recipe = catalogue.Recipe("ss-vae", (1, 2, 2), num_classes=3)
    assert recipe.context(3)[0].tolist() == [0, 1, 2]


def test_labels_are_kept_evenly_and_the_rest_withheld():
    y = torch.arange(40) % 4
    kept = keep_labels(y, 8, seed=0)
    assert (kept >= 0).sum() == 8 and kept[kept >= 0].bincount().tolist() == [2, 2, 2, 2]
    assert (kept == y)[kept >= 0].all()
    for wrong in (6, 44):
        with pytest.raises(ValueError, match=f"multiple of the 4 classes.*at most 40, got {wrong}"):
            keep_labels(y, wrong, seed=0)


def test_a_model_of_classes_refuses_data_without(capsys, tmp_path):
    np.save(tmp_path / "plain.npy", np.random.default_rng(0).integers(0, 2, (30, 1, 4, 4)).astype(np.float32))
    arguments = ["--data", tmp_path / "plain.npy", "--out", tmp_path / "out"]
    status, _, err = call(capsys, "train", "cvae", *arguments)
    assert status == 2 and "cvae" in err and "no labels" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"latent_dims": 3}, "setting of vae 'latent_dims'.*'latent_dim'"),
        ({"latent_dim": 2.5}, "latent_dim must be a positive whole number, got 2.5"),
        ({"hidden": ()}, r"hidden must be positive whole numbers, got \(\)"),
        ({"prior": 3}, "prior must be a name such as 'standard', got 3"),
        ({"decoder": "bernouli"}, "decoder 'bernouli'.*'bernoulli'"),
    ],
)
def test_a_recipe_names_the_setting_that_is_wrong(settings, facts):
    with pytest.raises(ValueError, match=facts):
        catalogue.Recipe("vae", (1, 4, 4), settings=settings)


def test_data_of_one_class_are_data_without(capsys, tmp_path):
    x, path = np.random.default_rng(0).normal(size=(80, 2)), tmp_path / "one.npz"
    np.savez(path, data=x, labels=np.zeros(80, int))
    run = ["--data", path, "--num-components", 2, "--epochs", 1, "--out", tmp_path / "r"]
    status, _, err = call(capsys, "train", "gmm", *run)
    assert status == 0, err
    status, out, err = call(capsys, "judge", tmp_path / "r", "--num", 8, "--data", path, "--json")
    assert status == 0 and "classifier_accuracy" not in json.loads(out), err


def test_a_class_may_be_missing_in_the_training_data(capsys, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "rare.npz"
    parts = {name: rng.integers(0, 2, (30, 6)).astype(np.float32) for name in ("train", "validation", "test")}
    labels = {f"{name}_labels": np.arange(30) % (3 if name == "test" else 2) for name in parts}
    np.savez(path, **parts, **labels)
    run = ["--data", path, "--latent-dim", 2, "--hidden", 4, "--epochs", 1, "--out", tmp_path / "r"]
    status, _, err = call(capsys, "train", "cvae", *run)
    assert status == 0, err
    assert json.loads((tmp_path / "r" / "config.json").read_text())["recipe"]["num_classes"] == 3
    status, _, err = call(capsys, "evaluate", tmp_path / "r", "--num-samples", 5, "--data", path)
    assert status == 0, err


def test_a_mean_with_a_bound_in_it_is_one_and_a_single_seed_has_no_range():
    runs = [{"seconds": 1.0, "log_likelihood": -1.0, "is_lower_bound": i > 0, "Fréchet_distance": i} for i in range(3)]
    figures = lineup._summary(runs)
    assert figures["is_lower_bound"] is True and figures["Fréchet_range"] == 2
    figures = lineup._summary(runs[:1])
    assert figures["is_lower_bound"] is False and figures["Fréchet_range"] is None
    assert lineup._summary([{"seconds": 1.0}])["is_lower_bound"] is None


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


def test_judge_measures_the_samples_of_a_run(run, capsys):
    status, out, err = call(capsys, "judge", run, "--num", 60, "--json")
    assert status == 0, err
    figures = json.loads(out)
    assert (figures["num_samples"], figures["num_data"]) == (60, 60) and figures["classifier_accuracy"] > 0.9
    assert 0 <= figures["precision"] <= 1 and sum(figures["class_shares"]) == pytest.approx(1)
    assert json.loads((run / "judgement.json").read_text()) == figures


@pytest.mark.parametrize("num", [1, 5])
def test_too_few_samples_to_judge_are_refused_before_anything_is_trained(run, num, capsys):
    status, out, err = call(capsys, "judge", run, "--num", num)
    assert (
        status == 2 and f"--num must be at least 6, since samples are compared with their neighbours, got {num}" in err
    )
    assert out == "" and err.count("\n") == 1


def test_judge_takes_data_of_fewer_rows_than_a_batch(monkeypatch, capsys, tmp_path):
    """Of 60 data 6 are for the test, as few as there can be; of 50 there are 5."""
    asked = []
    module = sys.modules["ppgen.cli.judge"]  # whose name in ppgen.cli is the command's
    monkeypatch.setattr(module, "train_classifier", lambda x, labels, **options: asked.append(options))
    x = np.random.default_rng(0).normal(size=(60, 2))
    for rows in (60, 50):
        data, run = tmp_path / f"{rows}.npz", tmp_path / str(rows)
        np.savez(data, data=x[:rows], labels=np.arange(rows) % 2)
        options = ["--num-components", 2, "--epochs", 1, "--data", data, "--out", run]
        assert call(capsys, "train", "gmm", *options)[0] == 0
        status, out, err = call(capsys, "judge", run, "--num", 6, "--json", "--data", data)
        if rows == 60:
            assert status == 0 and json.loads(out)["num_samples"] == 6, err
    assert status == 2 and "5 test data" in err and err.count("\n") == 1
    assert [options["epochs"] for options in asked] == [500]  # of one step each


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


def test_the_readme_names_every_data_set():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (row,) = (line for line in readme.splitlines() if line.startswith("| data |"))
    assert [name for name in data.describe() if f"`{name}`" not in row] == []


def test_list_names_every_part(capsys):
    _, out, _ = call(capsys, "list")
    for name in (
        *catalogue.MODELS,
        *catalogue.PRIORS,
        *catalogue.POSTERIORS,
        "bernoulli",
        "digits",
        "mnist",
        "freyfaces",
    ):
        assert f"  {name} " in out


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["train", "vae", "--out", "OUT", "--prior", "vmap"], ["prior", "'vmap'", "'vamp'"]),
        (["train", "vae", "--out", "OUT", "--data", "mnits"], ["'mnits'", "mnist"]),
        (["train", "vae", "--out", "OUT", "--epochs", "0"], ["epochs", "0"]),
        (["train", "vae", "--out", "OUT", "--lr", "nan"], ["lr must", "nan"]),
        (["train", "vae", "--out", "OUT", "--latent-dim", "-1"], ["latent_dim", "-1"]),
        (["train", "vae", "--out", "OUT", "--hidden", "a,b"], ["--hidden", "'a,b'"]),
        (["train", "vae", "--out", "OUT", "--prior", "vamp", "--num-components", "5000"], ["5000", "1297"]),
        (["train", "vae", "--out", "OUT", "--binarize", "none"], ["digits", "--binarize dynamic"]),
        (["train", "vae", "--out", "OUT", "--no-such"], ["--no-such"]),
        (["train", "vae", "--out", "OUT", "--epochs", "1.5"], ["--epochs", "integer"]),
        (["train", "vae"], ["--out"]),
        (["compare", "--out", "OUT", "--models", "vae,gna"], ["models", "'gna'", "'gan'"]),
        (["compare", "--out", "OUT", "--models", "vae,my:Foo"], ["models", "'my:Foo'", "one of vae"]),
        (["train", "gan2", "--out", "OUT"], ["gan2"]),
        (["train", "gmm", "--out", "OUT", "--covariance", "ful"], ["covariance", "'ful'", "full"]),
        (["train", "ss-vae", "--out", "OUT", "--labels", "7"], ["labels must", "10 classes", "7"]),
        (["evaluate", "OUT"], ["is not a run", "config.json"]),
        (["sample", "OUT"], ["is not a run"]),
        (["compare", "--out", "OUT", "--num-samples", "0"], ["--num-samples", "0"]),
        (["compare", "--out", "OUT", "--models", "vae,gan", "--num-samples", "0"], ["--num-samples", "0"]),
        (["compare", "--out", "OUT", "--models", "vae,gan", "--seeds", "0"], ["--seeds", "0"]),
        (["compare", "--out", "OUT", "--prior", ","], ["--prior names nothing"]),
        (["compare", "--out", "OUT", "--warmup", "200"], ["warmup=200", "epochs=100"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, facts, capsys, tmp_path):
    given = [str(tmp_path / "out") if a == "OUT" else a for a in arguments]
    status, out, err = call(capsys, *given)
    assert status == 2
    assert out == "" and err.count("\n") == 1 and err.startswith("Error: ")
    for fact in facts:
        assert fact in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("samples", ["0", "-1"])
def test_a_bad_number_of_samples_names_it(run, samples, capsys):
    status, _, err = call(capsys, "evaluate", run, "--num-samples", samples)
    assert status == 2 and f"num_samples must be a positive whole number, got {samples}" in err


@pytest.mark.parametrize("damage", ["truncated", "schema", "json", "unknown"])
def test_a_damaged_run_is_refused_by_name(run, damage, capsys, tmp_path):
    for name in ("config.json", "model.safetensors", "history.json", "manifest.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = json.loads((run / "config.json").read_text())
    if damage == "truncated":
        (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100])
    elif damage == "schema":
        (tmp_path / "config.json").write_text(json.dumps({**config, "schema": 99}))
    elif damage == "json":
        (tmp_path / "config.json").write_text("{")
    else:
        config["recipe"]["settings"]["prior"] = "os.system"
        (tmp_path / "config.json").write_text(json.dumps(config))
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["files"]["config.json"] = hashlib.sha256((tmp_path / "config.json").read_bytes()).hexdigest()
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    status, _, err = call(capsys, "evaluate", tmp_path, "--num-samples", 30)
    assert status == 2 and err.count("\n") == 1
    culprit = {"truncated": "model.safetensors", "schema": "99", "json": "config.json", "unknown": "'os.system'"}
    assert culprit[damage] in err


def test_help_says_what_each_option_is(capsys):
    status, out, _ = call(capsys, "compare", "--help")
    assert status == 0
    for word in ("--prior", "--num-samples", "--out", "importance sampling"):
        assert word in out
