"""Every prior with every posterior, decoder and objective: all of them train and score, refusals are listed here."""

import itertools
import math

import pytest
import torch

from ppgen import decoders, models, nn, priors
from ppgen.catalogue import DECODERS, POSTERIORS, PRIORS, Recipe
from ppgen.inference import dreg, elbo, fit, iwae, log_likelihood, renyi, sample, sticking_the_landing, warmup

OBJECTIVES = {
    "elbo": lambda: elbo(),
    "analytic": lambda: elbo(analytic_kl=True),
    "annealed": lambda: elbo(beta=warmup(1), free_bits=0.1),
    "iwae": lambda: iwae(3),
    "sticking": lambda: sticking_the_landing(),
    "dreg": lambda: dreg(3),
    "renyi": lambda: renyi(0.5, 3),
}
SEEDED = torch.Generator().manual_seed(0)  # the data are made at import, before any test is seeded
DATA = {
    "binary": torch.bernoulli(torch.full((12, 1, 3, 3), 0.4), generator=SEEDED),
    "real": torch.rand(12, 1, 3, 3, generator=SEEDED),
    "levels": torch.randint(8, (12, 1, 3, 3), dtype=torch.uint8, generator=SEEDED),
}
LEVELS = {"binary": 2, "real": None, "levels": 8}
# Combinations that are refused, each with its reason: none.
REFUSED: dict[tuple[str, str, str, str], str] = {}

EVERY = list(itertools.product(PRIORS, POSTERIORS, DECODERS, OBJECTIVES))


def pairwise(combinations):
    """A few combinations in which every two parts of different kinds meet: greedily, the one with most new pairs."""

    def meetings(combination):
        return set(itertools.combinations(enumerate(combination), 2))

    missing = set().union(*map(meetings, combinations))
    chosen = []
    while missing:
        best = max(combinations[len(chosen) % 7 :: 7], key=lambda c: len(meetings(c) & missing))
        if not meetings(best) & missing:
            best = max(combinations, key=lambda c: len(meetings(c) & missing))
        chosen.append(best)
        missing -= meetings(best)
    return chosen


FEW = pairwise(EVERY)


def train_and_score(prior, posterior, decoder, objective):
    kind = DECODERS[decoder].kind
    x = DATA[kind]
    parts = {"prior": prior, "posterior": posterior, "decoder": decoder}
    recipe = Recipe(
        "vae", (1, 3, 3), LEVELS[kind], None, {**parts, "latent_dim": 2, "num_components": 3, "hidden": (5,)}
    )
    torch.manual_seed(0)
    pair = recipe.build(x)
    before = [p.detach().clone() for p in pair.parameters()]
    history = fit(pair, x, loss=OBJECTIVES[objective](), epochs=2, batch_size=6, seed=0, progress=False)
    assert all(math.isfinite(value) for value in history.loss)
    names = [name for name, _ in pair.named_parameters()]
    still = [n for n, p, q in zip(names, pair.parameters(), before, strict=True) if torch.equal(p, q)]
    assert not still
    estimate = log_likelihood(pair, x, num_samples=3)
    assert estimate.values.isfinite().all()
    assert (estimate.elbo <= estimate.values + 1e-9).all()


def test_the_product_is_of_the_size_that_is_claimed():
    assert len(EVERY) >= 400 and len(FEW) < 200
    assert set(REFUSED) <= set(EVERY)


@pytest.mark.parametrize("combination", FEW, ids="-".join)
def test_every_two_parts_meet(combination):
    train_and_score(*combination)


@pytest.mark.parametrize("posterior", ["diagonal", "iaf", "sylvester"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_conditional_vae_of_the_same_parts(posterior, objective):
    x, y = DATA["binary"].flatten(1), torch.nn.functional.one_hot(torch.arange(12) % 3, 3).float()
    kind = POSTERIORS[posterior].build
    net = nn.MLP(9 + 3, 5, kind.num_outputs(2))
    q = kind(net) if posterior == "diagonal" else kind(net, 2)
    cvae = models.VAE(priors.Flow.maf(2, context_dim=3), decoders.Bernoulli(nn.MLP(2 + 3, 5, 9)), q)
    before = [p.detach().clone() for p in cvae.parameters()]
    fit(cvae, (x, y), loss=OBJECTIVES[objective](), epochs=2, batch_size=6, seed=0, progress=False)
    assert not any(torch.equal(p, b) for p, b in zip(cvae.parameters(), before, strict=True))
    assert log_likelihood(cvae, x, y, num_samples=3).values.isfinite().all()
    assert sample(cvae, 12, y).shape == (12, 9)


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "posterior"), list(itertools.product(PRIORS, POSTERIORS)))
def test_the_whole_product(prior, posterior):
    failed = {}
    for decoder, objective in itertools.product(DECODERS, OBJECTIVES):
        combination = (prior, posterior, decoder, objective)
        try:
            train_and_score(*combination)
        except (ValueError, RuntimeError, AssertionError, FloatingPointError) as error:
            failed[combination] = str(error)
    assert set(failed) == {c for c in REFUSED if c[:2] == (prior, posterior)}, failed
