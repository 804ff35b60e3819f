"""What people type by mistake at the command line, and runs that are damaged: what the one line of error names."""

import hashlib
import json
import sys

import numpy as np
import pytest
from command import call

from ppgen import cli

REAL = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)

COMMANDS = {
    "an unknown model": ("train vea --out {tmp}/r", ["vea"]),
    "an unknown data set": ("train vae --data mnits --out {tmp}/r", ["mnits", "did you mean 'mnist'"]),
    "no such file": ("train vae --data {tmp}/x.npy --out {tmp}/r", ["x.npy", "no file"]),
    "a file of another kind": ("train vae --data {tmp}/notes.txt --out {tmp}/r", ["notes.txt", ".npy"]),
    "a truncated file": ("train vae --data {tmp}/cut.npy --out {tmp}/r", ["cut.npy", "cannot be read"]),
    "an empty folder": ("train vae --data {tmp}/empty --out {tmp}/r", ["empty", "no images"]),
    "real data for a Bernoulli": ("train vae --data {tmp}/real.npy --out {tmp}/r", ["real.npy", "bernoulli"]),
    "NaN in a file": ("train vae --data {tmp}/nan.npy --out {tmp}/r", ["nan.npy", "NaN", "(3, 1)"]),
    "epochs of nothing": ("train --epochs 3", ["--epochs", "--resume"]),
    "data in front of the model": ("train --data {tmp}/real.npy fa --out {tmp}/r", ["--data", "behind", "train fa"]),
    "a comparison of no epochs": ("compare --epochs 0 --out {tmp}/r", ["epochs must", "0"]),
    "an unknown option": ("train vae --latent 3 --out {tmp}/r", ["--latent"]),
    "an unknown prior": ("train vae --prior gauss --out {tmp}/r", ["gauss", "standard"]),
    "an unknown decoder": ("train vae --decoder bernouli --out {tmp}/r", ["bernouli", "'bernoulli'"]),
    "no epochs": ("train vae --epochs 0 --out {tmp}/r", ["epochs", "0"]),
    "half an epoch": ("train vae --epochs 0.5 --out {tmp}/r", ["--epochs", "integer"]),
    "a batch of none": ("train vae --batch-size 0 --out {tmp}/r", ["batch_size", "0"]),
    "a latent of none": ("train vae --latent-dim 0 --out {tmp}/r", ["latent_dim", "0"]),
    "a negative latent": ("train vae --latent-dim -2 --out {tmp}/r", ["latent_dim", "-2"]),
    "sizes that are none": ("train vae --hidden 3,x --out {tmp}/r", ["--hidden", "3,x"]),
    "a learning rate of NaN": ("train vae --lr nan --out {tmp}/r", ["lr must", "nan"]),
    "a negative learning rate": ("train vae --lr -1 --out {tmp}/r", ["lr must", "-1"]),
    "a warm-up that outlasts training": (
        "train vae --warmup 5 --epochs 3 --patience 2 --out {tmp}/r", ["warmup=5", "epochs=3", "or patience=0"],
    ),
    "more pseudo-inputs than data": (
        "train vae --prior vamp --num-components 5000 --out {tmp}/r", ["num_components=5000", "1297"],
    ),
    "an unknown device": ("train vae --device gpu --out {tmp}/r", ["device", "gpu"]),
    "a device that is not here": ("train vae --device xpu:7 --out {tmp}/r", ["device", "xpu:7"]),
    "a device that is not here, for a GAN": ("train gan --device xpu:7 --out {tmp}/r", ["device", "xpu:7"]),
    "an output that is a file": ("train vae --epochs 1 --out {tmp}/notes.txt", ["notes.txt"]),
    "a part that cannot be imported": ("train vae --prior nowhere:Prior --out {tmp}/r", ["nowhere:Prior", "import"]),
    "0/1 data for a model of real ones": (
        "train gmm --data {tmp}/binary.npy --out {tmp}/r", ["binary values", "gmm is for real", "choose other data"],
    ),
    "0/1 data for a decoder of levels": (
        "train vae --data {tmp}/binary.npy --decoder categorical --out {tmp}/r",
        ["decoder categorical", "choose another --decoder (bernoulli)"],
    ),
    "data made binary for a model of real ones": (
        "train gmm --binarize fixed --out {tmp}/r", ["gmm is for real data", "leave out --binarize"],
    ),
    "a prior of no epochs": ("train vqvae --epochs 1 --prior-epochs 0 --out {tmp}/r", ["prior_epochs", "got 0"]),
    "a prior of negative patience": (
        "train vqvae --epochs 1 --prior-epochs 1 --prior-patience -1 --out {tmp}/r", ["prior_patience", "got -1"],
    ),
    "models of one class": (
        "train cvae --data {tmp}/alike.npz --out {tmp}/r", ["cvae is a model of data with classes", "all the same one"],
    ),
    "parts of models": ("compare --models vae --prior vamp --out {tmp}/r", ["--prior vamp", "--models"]),
    "posteriors of models": ("compare --models vae --posterior iaf --out {tmp}/r", ["--posterior iaf", "--models"]),
    "a model of models": ("compare --models vae --model hvae --out {tmp}/r", ["--model hvae", "--models"]),
    "components of models": (
        "compare --models vae --num-components 3 --out {tmp}/r", ["--num-components 3", "--models"],
    ),
    "a learning rate that none of the models has": (
        "compare --models gan,acgan --lr 0.5 --epochs 2 --out {tmp}/r", ["--lr", "none of these models (gan, acgan)"],
    ),
    "pseudo-inputs out of their range": (
        "train vae --data ring --decoder normal --prior vamp --epochs 1 --out {tmp}/r",
        ["prior 'vamp'", "[0, 1]", "choose another prior"],
    ),
    "seeds of parts": ("compare --seeds 3 --epochs 0 --out {tmp}/r", ["--seeds 3", "--models"]),
    "a run that is none": ("evaluate {tmp}/empty", ["empty", "config.json"]),
    "a run that is not there": ("sample {tmp}/nothing", ["nothing", "config.json"]),
    "a run without samples": ("evaluate {tmp}/empty --num-data 0", ["--num-data", "0"]),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_be_followed_says_why_in_one_line(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("no data")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "real.npy", REAL)
    np.save(tmp_path / "binary.npy", REAL > 0)
    np.savez(tmp_path / "alike.npz", data=REAL > 0, labels=np.zeros(60, int))
    np.save(tmp_path / "nan.npy", np.where(np.arange(360).reshape(60, 6) == 3 * 6 + 1, np.nan, REAL))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "real.npy").read_bytes()[:200])
    before = sorted(tmp_path.rglob("*"))
    command, facts = COMMANDS[name]
    monkeypatch.setattr(sys, "argv", ["ppgen", *command.format(tmp=tmp_path).split()])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out
    assert [fact for fact in ["Error:", *facts] if fact not in err] == [], err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert [p for p in sorted(tmp_path.rglob("*")) if tmp_path / "r" not in (p, *p.parents)] == before


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
