"""The command line as a user types it: runs that rebuild their model, a comparison, and one-line errors."""

import csv
import json
import subprocess
import sys

import pytest
import torch

from ppgen import catalogue, cli
from ppgen.inference import fit
from ppgen.runs import load_run, save_run

SMALL = ["--data", "digits", "--latent-dim", "2", "--num-components", "5", "--hidden", "8"]


def call(capsys, *arguments):
    """Exit status, standard output and standard error of one command."""
    before = sys.argv
    sys.argv = ["ppgen", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = before
    code = stop.value.code
    out, err = capsys.readouterr()
    return (code if isinstance(code, int) else 0 if code is None else 1), out, err


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
        "config.json",
        "model.safetensors",
        "history.json",
        "metrics.json",
        "losses.png",
        "samples.png",
        "reconstructions.png",
        "pseudo_inputs.png",
        "manifold.png",
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
        (["train", "vae", "--out", "OUT", "--lr", "nan"], ["--lr", "nan"]),
        (["train", "vae", "--out", "OUT", "--latent-dim", "-1"], ["latent_dim", "-1"]),
        (["train", "vae", "--out", "OUT", "--hidden", "a,b"], ["--hidden", "'a,b'"]),
        (["train", "vae", "--out", "OUT", "--prior", "vamp", "--num-components", "5000"], ["5000", "1297"]),
        (["train", "vae", "--out", "OUT", "--binarize", "none"], ["digits", "--binarize dynamic"]),
        (["train", "vae", "--out", "OUT", "--no-such"], ["--no-such"]),
        (["train", "vae", "--out", "OUT", "--epochs", "1.5"], ["--epochs", "integer"]),
        (["train", "vae"], ["--out"]),
        (["evaluate", "OUT"], ["is not a run", "config.json"]),
        (["sample", "OUT"], ["is not a run"]),
        (["compare", "--out", "OUT", "--prior", ","], ["--prior names nothing"]),
        (["compare", "--out", "OUT", "--warmup", "200"], ["--warmup 200", "--epochs 100"]),
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
    for name in ("config.json", "model.safetensors"):
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
    status, _, err = call(capsys, "evaluate", tmp_path, "--num-samples", 30)
    assert status == 2 and err.count("\n") == 1
    culprit = {"truncated": "model.safetensors", "schema": "99", "json": "config.json", "unknown": "'os.system'"}
    assert culprit[damage] in err


def test_help_says_what_each_option_is(capsys):
    status, out, _ = call(capsys, "compare", "--help")
    assert status == 0
    for word in ("--prior", "--num-samples", "--out", "importance sampling"):
        assert word in out
