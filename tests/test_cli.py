"""The command line as a user types it: runs that rebuild their model, every model by its name, what is listed."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import call

from ppgen import catalogue, data
from ppgen.files import json_text
from ppgen.runs import load_run


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


def test_a_model_of_classes_refuses_data_without(capsys, tmp_path):
    np.save(tmp_path / "plain.npy", np.random.default_rng(0).integers(0, 2, (30, 1, 4, 4)).astype(np.float32))
    arguments = ["--data", tmp_path / "plain.npy", "--out", tmp_path / "out"]
    status, _, err = call(capsys, "train", "cvae", *arguments)
    assert status == 2 and "cvae" in err and "no labels" in err and not (tmp_path / "out").exists()


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


def test_help_says_what_each_option_is(capsys):
    status, out, _ = call(capsys, "compare", "--help")
    assert status == 0
    for word in ("--prior", "--num-samples", "--out", "importance sampling"):
        assert word in out
