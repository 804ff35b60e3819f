"""Images in colour from the command line: trained, scored in bits per dimension, drawn; CIFAR-10 in the same way."""

import dataclasses
import json

import pytest
import torch
from command import call

from ppgen import data
from ppgen.data import sets
from ppgen.data.source import Source
from ppgen.runs import load_run

TINY = {
    "pixelcnn": ["--decoder", "logistic-mixture", "--num-layers", "1", "--filters", "4"],
    "vqvae": ["--decoder", "logistic", "--filters", "4", "--prior-epochs", "1"],
    "gan": ["--filters", "4"],
    "wgan-gp": ["--filters", "4"],
    "acgan": ["--filters", "4"],
}


@pytest.fixture(scope="module")
def source():
    whole = data.load("patches")
    parts = [(whole.train[:60], whole.train_labels[:60]), (whole.validation[:10], whole.validation_labels[:10])]
    parts.append((whole.test[:10], whole.test_labels[:10]))
    images, labels = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    return Source(images, (60, 10, 10), 256, "few", labels, whole.class_names)


@pytest.mark.parametrize(
    ("model", "name"),
    [(model, "patches") for model in ("pixelcnn", "vqvae", "wgan-gp")]
    + [(model, "cifar10") for model in ("pixelcnn", "vqvae", "gan", "acgan")],
)
def test_colour_is_trained_on_scored_and_drawn(model, name, source, monkeypatch, capsys, tmp_path):
    known = dataclasses.replace(sets.KNOWN_SETS[name], read=lambda obtain: source)
    monkeypatch.setitem(sets.KNOWN_SETS, name, known)
    run = tmp_path / "run"
    status, _, err = call(
        capsys, "train", model, "--data", name, *TINY[model], "--epochs", 1, "--batch-size", 20, "--out", run
    )
    assert status == 0, err
    assert (run / "losses.png").exists() and (run / "samples.png").exists()
    again = load_run(run)
    assert again.recipe.shape == (3, 32, 32) and again.recipe.num_levels == 256
    assert json.loads((run / "config.json").read_text())["data"]["binarization"] == "none"
    if model in ("pixelcnn", "vqvae"):
        status, out, err = call(capsys, "evaluate", run)
        figures = json.loads((run / "evaluation.json").read_text())
        assert status == 0, err
        assert f"{figures['bits_per_dim']:.3f} bits per dimension" in out
        nats = -figures["log_likelihood"] / (3 * 32 * 32)
        assert figures["bits_per_dim"] == pytest.approx(nats / 0.6931472, rel=1e-5)
        assert 1 < figures["bits_per_dim"] < 12  # 8 would be all levels alike
