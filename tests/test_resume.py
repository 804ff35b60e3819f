"""``ppgen train`` stopped within a step, and ``ppgen train --resume``: the files that a run without a stop leaves."""

import json
import signal
from contextlib import ExitStack

import numpy as np
import pytest
from command import call
from safetensors.torch import load_file

from ppgen.catalogue import Recipe
from ppgen.cli import train
from ppgen.inference import EM, SVI, Adversarial
from ppgen.inference.training.checkpoint import Checkpoints
from ppgen.runs import CHECK, EVALUATION, JUDGEMENT, begin_run

SMALL = ["--data", "digits", "--epochs", 3]
# name: (its class of step, options, the step that is stopped)
RUNS = {
    "vae": (
        SVI,
        [*SMALL, "--latent-dim", 2, "--hidden", 8, "--prior", "vamp", "--num-components", 5, "--patience", 1],
        20,
    ),
    "gmm": (EM, [*SMALL, "--num-components", 3, "--covariance", "diag"], 2),
    "wgan-gp": (Adversarial, [*SMALL, "--latent-dim", 4, "--filters", 4], 30),
    "vqvae": (SVI, [*SMALL, "--codebook-size", 8, "--filters", 4, "--prior-epochs", 2], 45),  # while the prior trains
}


@pytest.fixture(autouse=True)
def listening():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def parameters(folder):
    return {name: value.tolist() for name, value in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "vqvae" else ()) for n in RUNS])
def test_what_was_stopped_and_resumed_leaves_the_files_of_what_was_not(name, monkeypatch, capsys, tmp_path):
    kind, options, at = RUNS[name]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    status, _, err = call(capsys, "train", name, *options, "--out", whole)
    assert status == 0, err
    step, made = kind.step, []

    def signalled(self, *batch):
        loss = step(self, *batch)
        made.append(loss)
        if len(made) == at:
            signal.raise_signal(signal.SIGINT)
        return loss

    monkeypatch.setattr(kind, "step", signalled)
    status, _, err = call(capsys, "train", name, *options, "--out", stopped)
    assert (
        status == 130
        and f"--resume {stopped}" in err
        and len(made) == at
        and not (stopped / "model.safetensors").exists()
    )
    monkeypatch.undo()
    status, _, err = call(capsys, "train", name, *options, "--out", stopped)
    assert status == 2 and f"--resume {stopped}" in err
    status, _, err = call(capsys, "evaluate", stopped)
    assert status == 2 and f"--resume {stopped}" in err
    status, _, err = call(capsys, "train", "--resume", stopped)
    assert status == 0, err
    assert parameters(whole) == parameters(stopped)
    assert (whole / "config.json").read_bytes() == (stopped / "config.json").read_bytes()
    histories = [json.loads((folder / "history.json").read_text()) for folder in (whole, stopped)]
    assert [{**h, "seconds": None} for h in histories[:1]] == [{**h, "seconds": None} for h in histories[1:]]


def test_a_run_that_has_ended_can_have_more_epochs(capsys, tmp_path):
    longer, first = tmp_path / "longer", tmp_path / "first"
    options = ["--data", "digits", "--latent-dim", 2, "--hidden", 8]
    assert call(capsys, "train", "vae", *options, "--epochs", 3, "--out", longer)[0] == 0
    assert call(capsys, "train", "vae", *options, "--epochs", 1, "--out", first)[0] == 0
    status, _, err = call(capsys, "train", "--resume", first)
    assert status == 2 and "--epochs" in err
    status, out, err = call(capsys, "train", "--resume", first, "--epochs", 3)
    assert status == 0 and out.startswith("3 epochs"), err
    assert parameters(first) == parameters(longer)
    status, _, err = call(capsys, "train", "--resume", first, "vae", "--out", tmp_path / "x")
    assert status == 2 and "leave out vae" in err


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "log.txt"}


def test_a_run_that_has_ended_stays_as_it_is_until_it_has_ended_again(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "my run"
    options = ["--data", "digits", "--latent-dim", 2, "--hidden", 8]
    assert call(capsys, "train", "vae", *options, "--epochs", 2, "--out", folder)[0] == 0
    ended = files(folder)
    status, _, err = call(capsys, "train", "--resume", folder, "--epochs", 1)
    assert status == 2 and "has had 2" in err and files(folder) == ended
    monkeypatch.setattr(SVI, "step", lambda self, *batch: signal.raise_signal(signal.SIGINT))
    status, _, err = call(capsys, "train", "--resume", folder, "--epochs", 3)
    assert status == 130 and f"--resume '{folder}' --epochs 3" in err and files(folder) == ended
    monkeypatch.undo()
    assert call(capsys, "evaluate", folder, "--num-samples", 2)[0] == 0
    ended = files(folder)
    (folder / "checkpoints").rename(tmp_path / "elsewhere")
    for epochs in (0, 3):
        status, _, err = call(capsys, "train", "--resume", folder, "--epochs", epochs)
        assert status == 2 and "checkpoints are not there" in err and files(folder) == ended


def test_what_is_no_run_is_neither_overwritten_nor_removed(capsys, tmp_path):
    (tmp_path / "config.json").write_text("of something else")
    status, _, err = call(capsys, "train", "vae", "--data", "digits", "--out", tmp_path, "--epochs", 0)
    assert status == 2 and "config.json" in err
    assert [p.read_text() for p in tmp_path.iterdir()] == ["of something else"]


@pytest.mark.parametrize("refusal", [["--lr", "nan"], ["--data", "{tmp}/x.npy", "--decoder", "continuous-bernoulli"]])
@pytest.mark.parametrize("name", ["mine", ".", "new/run"])
def test_a_run_that_is_refused_leaves_the_folder_as_it_was(refusal, name, monkeypatch, capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.full((60, 1, 3, 3), 255.0, np.float32))
    for folder in ("mine", "."):
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
        (tmp_path / folder / "checkpoints" / "best.ckpt").write_text("of another program")
        (tmp_path / folder / "log.txt").write_text("of another program\n")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    options = [option.format(tmp=tmp_path) for option in refusal]
    status, _, err = call(capsys, "train", "vae", *options, "--epochs", 1, "--out", name)
    assert status == 2 and ("lr must" in err or "255" in err), err
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("moment", ["load", "build"])
def test_of_two_runs_in_one_folder_one_is_refused_and_leaves_the_other_alone(moment, monkeypatch, capsys, tmp_path):
    """Another begins while the data are loaded; or goes on with the run (--resume) that has only just begun."""
    out, prepare, before = tmp_path / "r", getattr(train, moment), {}
    with ExitStack() as other:

        def meanwhile(*arguments):
            if moment == "load":
                begin_run(out, Recipe("gmm", (1, 8, 8)), data={"name": "digits"}, training={})
            other.enter_context(Checkpoints(out / "checkpoints").alone())
            (out / "log.txt").write_text("of the other")
            before.update({path: path.is_file() and path.read_bytes() for path in out.rglob("*")})
            return prepare(*arguments)

        monkeypatch.setattr(train, moment, meanwhile)
        status, _, err = call(capsys, "train", "gmm", *SMALL, "--num-components", 2, "--out", out)
        assert status == 2 and ("already holds a run" if moment == "load" else "in use by another run") in err
        after = {path: path.is_file() and path.read_bytes() for path in out.rglob("*")}
        assert after.keys() == before.keys() and {out / "config.json", out / "checkpoints" / ".lock"} <= after.keys()
        assert all(after[path].startswith(before[path]) for path in after if path.is_file())  # a log grows


def test_what_was_measured_of_a_run_does_not_outlive_its_model(capsys, tmp_path):
    out = tmp_path / "r"
    assert call(capsys, "train", "gmm", "--epochs", 1, "--num-components", 2, "--out", out)[0] == 0
    assert call(capsys, "evaluate", out)[0] == 0 and (out / EVALUATION).exists()
    for name in (JUDGEMENT, CHECK):
        (out / name).write_text("of one epoch")
    status, _, err = call(capsys, "train", "--resume", out, "--epochs", 2)
    assert status == 0, err
    assert not {EVALUATION, JUDGEMENT, CHECK} & {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_codes_that_were_trained_on_get_a_prior_of_their_own(capsys, tmp_path):
    options = ["--data", "digits", "--codebook-size", 8, "--filters", 4, "--prior-epochs", 1]
    longer, first = tmp_path / "longer", tmp_path / "first"
    assert call(capsys, "train", "vqvae", *options, "--epochs", 3, "--out", longer)[0] == 0
    assert call(capsys, "train", "vqvae", *options, "--epochs", 1, "--out", first)[0] == 0
    status, _, err = call(capsys, "train", "--resume", first, "--epochs", 3)
    assert status == 0, err
    assert parameters(first) == parameters(longer)


@pytest.mark.parametrize(
    ("part", "value", "culprit"),
    [
        ("training", {"epochs": "many"}, "epochs='many'"),
        ("training", {"callback": "os.system"}, "callback='os.system'"),
        ("recipe", {"model": "os"}, "'os'"),
    ],
)
def test_settings_that_no_training_has_are_refused(part, value, culprit, capsys, tmp_path):
    assert call(capsys, "train", "gmm", *SMALL, "--num-components", 2, "--out", tmp_path / "r")[0] == 0
    path = tmp_path / "r" / "config.json"
    config = json.loads(path.read_text())
    config[part] |= value
    path.write_text(json.dumps(config))
    status, _, err = call(capsys, "train", "--resume", tmp_path / "r", "--epochs", 5)
    assert status == 2 and culprit in err and "config.json" in err
