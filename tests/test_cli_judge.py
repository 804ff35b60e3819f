"""``ppgen judge``: the measures of a run's samples, and what is too little to judge by."""

import json
import sys

import numpy as np
import pytest
from command import call


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
