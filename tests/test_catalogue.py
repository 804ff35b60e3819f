"""Models by name: recipes that survive the disk and name the setting that is wrong, and how they are trained."""

import pytest
import torch
from vqvaes import IMAGE, K, images

from ppgen import catalogue
from ppgen.catalogue import training
from ppgen.catalogue.training import keep_labels
from ppgen.inference import History, fit
from ppgen.runs import load_run, save_run


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


def named():
    return catalogue.Recipe("vqvae", IMAGE, settings={"codebook_size": K, "filters": 4, "num_layers": 1}).build()


def test_codes_and_their_prior_are_both_trained_as_the_options_say(monkeypatch):
    asked = []

    def recorded(pair, data, validation, **options):
        asked.append(options)
        return History(loss=[1.0], seconds=[2.0 + len(asked)])

    monkeypatch.setattr(training, "variational", recorded)
    options = {"epochs": 3, "prior_epochs": 4, "patience": 5, "prior_patience": 0, "compile": False}
    history = training.vector_quantized(named(), (images(),), (images(),), **options)
    chosen = [(each["epochs"], each["patience"], each["compile"]) for each in asked]
    assert chosen == [(3, 5, False), (4, 0, False)]
    assert sum(history.seconds) == 3.0 + 4.0


def test_a_run_that_is_stopped_leaves_the_pair_its_prior(monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "variational", stopped)
    pair = named()
    before = pair.prior
    with pytest.raises(KeyboardInterrupt):
        training.vector_quantized(pair, (images(),), (images(),))
    assert pair.prior is before


def test_a_prior_that_cannot_be_trained_is_refused_before_the_codes_are():
    pair = named()
    before = pair.prior
    with pytest.raises(ValueError, match="prior_epochs must be a positive whole number, got 0"):
        training.vector_quantized(pair, (images(),), (images(),), epochs=1, prior_epochs=0)
    assert pair.prior is before
