"""The data of a run: found again wherever the command is given, known again, and found anew where they have moved."""

import json
import re
import shlex

import numpy as np
import pytest
from command import call

from ppgen.files import write_manifest

SMALL = ["--hidden", 4, "--latent-dim", 2, "--epochs", 1]


def binary(seed):
    return np.random.default_rng(seed).integers(0, 2, (60, 1, 3, 3)).astype(np.float32)


def evaluated(capsys, *arguments):
    status, out, err = call(capsys, "evaluate", *arguments, "--num-samples", 2, "--json")
    assert status == 0, err
    return json.loads(out)


def refused(capsys, *arguments):
    status, _, err = call(capsys, *arguments)
    assert status == 2 and err.count("\n") == 1, err
    return err


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The folder of a run that was made with ``--data d.npy``, and where commands are given."""
    np.save(tmp_path / "d.npy", binary(0))
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "train", "vae", "--data", "d.npy", *SMALL, "--out", "run")[0] == 0
    return tmp_path


def test_data_of_the_same_name_elsewhere_are_others(here, monkeypatch, capsys):
    figures = evaluated(capsys, "run", "--allow", "d.npy")
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    np.save(elsewhere / "d.npy", binary(1))
    monkeypatch.chdir(elsewhere)
    assert f"--allow {here / 'd.npy'}" in refused(capsys, "evaluate", "../run", "--allow", "d.npy")
    assert evaluated(capsys, "../run", "--allow", here / "d.npy") == figures
    for command in ("evaluate", "judge", "check"):
        assert "d.npy does not hold the data" in refused(capsys, command, "../run", "--data", "d.npy")


def test_data_that_were_replaced_are_refused(here, capsys):
    np.save("d.npy", binary(1))
    assert "does not hold the data" in refused(capsys, "evaluate", "run", "--allow", "d.npy")
    resume = ["train", "--resume", "run", "--epochs", 2, "--allow", "d.npy"]
    assert "does not hold the data" in refused(capsys, *resume)


def test_data_that_have_moved_are_found_where_one_says(here, capsys):
    figures = evaluated(capsys, "run", "--allow", "d.npy")
    (here / "d.npy").rename(here / "e.npy")
    assert "--data PATH" in refused(capsys, "evaluate", "run")
    assert evaluated(capsys, "run", "--data", "e.npy") == figures
    assert call(capsys, "train", "--resume", "run", "--epochs", 2, "--data", "e.npy")[0] == 0
    assert json.loads((here / "run" / "config.json").read_text())["data"]["name"] == str(here / "e.npy")
    assert evaluated(capsys, "run", "--allow", "e.npy")["log_likelihood"] != figures["log_likelihood"]


def test_what_allows_them_can_be_pasted(here, capsys):
    (here / "d.npy").rename(here / "my data, all.npy")
    assert call(capsys, "train", "vae", "--data", "my data, all.npy", *SMALL, "--out", "two")[0] == 0
    said = re.search(r"\((--allow .*)\)", refused(capsys, "evaluate", "two"))
    evaluated(capsys, "two", *shlex.split(said[1]))


def test_a_run_without_a_digest_is_read_as_before(here, capsys):
    figures = evaluated(capsys, "run", "--allow", "d.npy")
    config = json.loads((here / "run" / "config.json").read_text())
    config["data"] = {name: config["data"][name] for name in ("binarization", "split")} | {"name": "d.npy"}
    (here / "run" / "config.json").write_text(json.dumps(config))
    names = ("config.json", "history.json", "model.safetensors")
    write_manifest(here / "run", {name: (here / "run" / name).read_bytes() for name in names}, config["schema"])
    assert evaluated(capsys, "run", "--allow", "d.npy") == figures
    assert evaluated(capsys, "run", "--data", "d.npy") == figures


def test_a_data_set_with_a_name_does_not_move(here, capsys):
    assert call(capsys, "train", "gmm", "--epochs", 1, "--num-components", 2, "--out", "digits-run")[0] == 0
    assert "digits" in refused(capsys, "evaluate", "digits-run", "--data", "d.npy")
    assert "mnist" in refused(capsys, "evaluate", "run", "--data", "mnist")
