"""VQ-VAEs: the bound by hand, what it trains, priors fitted to codes."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from vqvaes import GRID, IMAGE, K, _adam, catch, images, levels, pixelcnn, small

from ppgen import data, decoders, models, nn, priors
from ppgen.inference import (
    SVI,
    decode,
    elbo,
    encode,
    fit,
    iwae,
    latent_report,
    log_likelihood,
    log_weights,
    reconstruct,
    sample,
)


@pytest.mark.parametrize("ema", [True, False])
def test_training_goes_on_exactly_from_a_saved_state(ema):
    x = images(40)
    pair = small(ema=ema)
    fit(pair, x, epochs=2, batch_size=10, seed=0)
    other = small(ema=ema)
    other.load_state_dict(copy.deepcopy(pair.state_dict()))
    assert other.monitors == pair.monitors and torch.equal(other.quantizer.sums, pair.quantizer.sums)
    for each in (pair, other):
        fit(each, x, epochs=2, batch_size=10, seed=1)
    for (name, a), b in zip(pair.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_codes_outside_the_codebook_are_refused():
    pair = small(priors.CategoricalGrid(50, GRID[1:]))
    with pytest.raises(ValueError, match=r"has 6 codes, 0 to 5, but was given codes from .* as many categories"):
        sample(pair, 20)


def bound(pair, x, codes):
    """The bound log p(x | e_z) + log p(z) for a uniform prior, by hand."""
    with torch.no_grad():
        logits = pair.decoder.net(pair.quantizer.embed(codes))
        log_p = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
        return log_p - codes[0].numel() * math.log(K)


def test_the_log_likelihood_is_the_bound_and_says_so():
    pair, x = small(), images()
    fit(pair, x, epochs=2, seed=0)
    codes = encode(pair, x)
    with torch.no_grad():
        assert torch.equal(codes, pair.eval().quantizer(pair.encoder(x)))
    for num_samples in (1, 30):
        estimate = log_likelihood(pair, x, num_samples=num_samples)
        assert torch.allclose(estimate.values.float(), bound(pair, x, codes), atol=1e-4)
        assert estimate.is_lower_bound and "lower bound" in str(estimate)
        assert not estimate.mc_standard_error.any(), "there is nothing random in it"
    assert torch.allclose(log_weights(pair.eval(), x, num_samples=2), bound(pair, x, codes).expand(2, -1), atol=1e-4)
    assert latent_report(pair, x).kl["z"] == pytest.approx(9 * math.log(K), abs=1e-4)


def test_it_bounds_the_likelihood_that_all_grids_add_up_to():
    grid = (3, 2, 1)
    pair = models.VQVAE(
        torch.nn.Sequential(nn.MLP(IMAGE, 8, grid)),
        nn.VectorQuantizer(3, 3),
        decoders.Bernoulli(nn.MLP(grid, 8, IMAGE)),
        priors.CategoricalGrid(3, (2, 1)),
    )
    x = images(5)
    every = torch.tensor(list(itertools.product(range(3), repeat=2))).reshape(9, 2, 1)
    with torch.no_grad():
        log_p = pair.decoder(pair.quantizer.embed(every).unsqueeze(1)).log_prob(x) - 2 * math.log(3)  # (9, N)
    assert (log_likelihood(pair, x, num_samples=1).values < log_p.logsumexp(0)).all()


@pytest.mark.parametrize("ema", [True, False])
def test_the_training_loss_is_the_bound_with_its_penalty_and_reaches_every_parameter(ema):
    pair, x = small(ema=ema, decay=0.0, revival=0.0), images()
    loss = elbo()(pair.model, pair.guide, x)
    loss.backward()
    # The codebook has moved before it was used: by hand with the codes that were found before that.
    h = pair.encoder(x).detach()
    fresh = copy.deepcopy(pair).eval()
    codes = fresh.quantizer(h) if not ema else _codes_of(pair, h)
    expected = -bound(fresh, x, codes).mean() + fresh.quantizer.penalty(h, codes).mean()
    assert torch.allclose(loss, expected, atol=1e-3)
    for name, parameter in pair.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            if "encoder" in name or "decoder" in name or "codebook" in name:
                assert parameter.grad.abs().sum() > 0, name


def _codes_of(pair, h):
    """With decay 0 each code in use is the mean of what was assigned to it, which undoes the move."""
    means, vectors = pair.quantizer.codebook.detach(), h.movedim(1, -1)
    codes = torch.cdist(vectors.reshape(-1, h.shape[1]), means).argmin(-1).reshape(len(h), *h.shape[2:])
    return codes


def test_the_encoder_gets_the_decoders_gradient():
    pair, x = small(commitment=0.0, revival=0.0), images(6)
    caught = {}
    pair.encoder.register_forward_hook(lambda m, i, out: catch(caught, h=out))
    pair.decoder.register_forward_pre_hook(lambda m, args: catch(caught, e=args[0]))
    elbo()(pair.model, pair.guide, x).backward()
    assert caught["h"].grad.abs().sum() > 0
    assert torch.allclose(caught["h"].grad, caught["e"].grad)


@pytest.mark.parametrize("build", [small, lambda: levels(2)])
def test_a_frozen_codebook_stays_and_encoder_and_decoder_train_on(build):
    pair, x = build().train(), images(6)
    quantizers = [part for part in pair.modules() if isinstance(part, nn.VectorQuantizer)]
    for quantizer in quantizers:
        quantizer.eval()
    before = [copy.deepcopy(quantizer.state_dict()) for quantizer in quantizers]
    elbo()(pair.model, pair.guide, x).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in pair.parameters())
    for old, quantizer in zip(before, quantizers, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in quantizer.state_dict().items())


def test_training_finds_codes_that_tell_the_data_apart():
    prototypes = torch.bernoulli(torch.full((4, *IMAGE), 0.5))
    x = prototypes[torch.arange(200) % 4]
    for ema in (True, False):
        pair = small(ema=ema)
        before = log_likelihood(pair, x, num_samples=1).mean
        history = fit(pair, x, epochs=40, batch_size=50, seed=0, optimizer=_adam)
        assert history.loss[-1] < history.loss[0]
        assert log_likelihood(pair, x, num_samples=1).mean > before + 10
        assert (reconstruct(pair, prototypes) - prototypes).abs().mean() < 0.05
        assert 1 < pair.monitors["perplexity"] <= K


def test_the_default_optimiser_reads_gradients_in_any_memory_order():
    """Embedded grids are channels-last in memory, and so are the gradients of the convolutions behind them."""
    losses = []
    for fused in (True, False):
        torch.manual_seed(0)
        pair, x = small(), images(40)
        options = {"lr": 1e-2, "fused": fused}
        losses.append(
            fit(pair, x, epochs=5, batch_size=10, seed=0, optimizer=lambda p, o=options: torch.optim.Adam(p, **o)).loss
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_on_digits_a_pixelcnn_is_worth_many_nats_over_the_uniform_prior():
    digits = data.load("digits", binarize="none")
    shape, grid, levels, size = (1, 8, 8), (16, 4, 4), digits.num_levels, 32
    torch.manual_seed(0)
    pair = models.VQVAE(
        nn.ResidualConvNet(shape, grid, channels=32, levels=levels),
        nn.VectorQuantizer(size, 16),
        decoders.DiscretizedLogistic(nn.ResidualConvNet(grid, (2, 8, 8), channels=32), levels),
    )
    history = fit(pair, digits.train, epochs=40, seed=0)
    assert history.monitors["perplexity"][-1] > size / 2
    uniform = log_likelihood(pair, digits.test, num_samples=1).mean
    assert uniform > -130
    codes = encode(pair, digits.train)
    pair.prior = pixelcnn((4, 4), size, channels=32, num_layers=4)
    fit(models.ExplicitDensity(pair.prior), codes, epochs=15, seed=0)
    assert log_likelihood(pair, digits.test, num_samples=1).mean > uniform + 8


def test_losses_of_several_kinds_train_the_same_pair(global_param_store):
    x = images()
    for loss in (elbo(), elbo(num_particles=2), iwae(3), pyro.infer.Trace_ELBO()):
        pair = small()
        before = copy.deepcopy(pair.state_dict())
        value = SVI(pair, loss).step(x)
        moved = {n for n, p in pair.state_dict().items() if not torch.equal(p, before[n])}
        assert torch.isfinite(value)
        assert {n.split(".")[0] for n in moved} == {"encoder", "decoder", "quantizer"}, type(loss).__name__
    pair = small()
    before = copy.deepcopy(pair.state_dict())
    pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()).step(x)
    moved = {n.split(".")[0] for n, p in pair.state_dict().items() if not torch.equal(p, before[n])}
    assert moved == {"encoder", "decoder", "quantizer"}


def test_a_prior_is_fitted_to_the_codes_and_takes_its_place():
    pair, x = small(), images(100)
    fit(pair, x, epochs=3, seed=0)
    codes = encode(pair, x)
    uniform = log_likelihood(pair, x, num_samples=1)
    prior = priors.CategoricalGrid(K, GRID[1:], learn=True)
    fit(models.ExplicitDensity(prior), codes, epochs=60, seed=0, optimizer=_adam)
    frozen = copy.deepcopy(pair.decoder.state_dict())
    pair.prior = prior
    fitted = log_likelihood(pair, x, num_samples=1)
    difference = prior().log_prob(codes).detach() + 9 * math.log(K)
    assert torch.allclose((fitted.values - uniform.values).float(), difference, atol=1e-3)
    assert fitted.mean > uniform.mean
    assert all(torch.equal(frozen[n], v) for n, v in pair.decoder.state_dict().items())


class Certain(torch.nn.Module):
    """One grid, with certainty."""

    def __init__(self, codes):
        super().__init__()
        self.codes = codes
        self.drawn = 0

    def forward(self, *context):
        self.drawn += 1
        return dist.Delta(self.codes, event_dim=2)


def test_samples_go_from_the_prior_through_the_codebook_to_the_decoder():
    codes = torch.arange(9).reshape(3, 3) % K
    pair = small(Certain(codes))
    with torch.no_grad():
        mean = pair.decoder(pair.quantizer.embed(codes)).mean
    assert torch.allclose(sample(pair, 4, mean=True), mean.expand(4, *IMAGE))
    assert sample(pair, 4, seed=0).unique().tolist() == [0.0, 1.0]
    assert torch.allclose(decode(pair, codes.expand(4, 3, 3)), mean.expand(4, *IMAGE))
    assert torch.equal(sample(small(), 5, seed=3), sample(small(), 5, seed=3)) is False, "other parameters"


class Undrawn(torch.nn.Module):
    """A prior whose draws must not be asked for where codes are given."""

    def forward(self, *context):
        class Refusing(dist.Categorical):
            def sample(self, sample_shape=()):
                raise AssertionError("drawn")

        return Refusing(logits=torch.zeros(3, 3, K)).to_event(2)


def test_decoding_draws_nothing_from_the_prior():
    pair, x = small(Undrawn()), images()
    assert reconstruct(pair, x).shape == x.shape
    assert decode(pair, encode(pair, x)).shape == x.shape
    with pytest.raises(AssertionError, match="drawn"):
        sample(pair, 2)


def test_masks_leave_what_is_missing_out_of_the_encoder_and_the_bound():
    pair, x = small(), images()
    mask = torch.rand(x.shape) < 0.6
    history = fit(pair, x, mask=mask, epochs=2, seed=0)
    assert 1 <= history.monitors["perplexity"][-1] <= K
    holes = torch.where(mask, x, torch.nan)
    estimate = log_likelihood(pair, holes, mask=mask, num_samples=1)
    filled = torch.where(mask, x, 0.0)
    codes = encode(pair, filled)
    assert torch.equal(encode(pair, holes, mask=mask), codes)
    with torch.no_grad():
        elements = pair.decoder(pair.quantizer.embed(codes)).base_dist.log_prob(filled)
        expected = (elements * mask).sum((1, 2, 3)) - 9 * math.log(K)
    assert torch.allclose(estimate.values.float(), expected, atol=1e-4)
    whole = torch.ones_like(mask)
    assert torch.equal(log_likelihood(pair, x, mask=whole).values, log_likelihood(pair, x).values)


def test_contexts_reach_every_part():
    options = {"channels": 8, "num_blocks": 1, "context_shapes": [2]}
    pair = models.VQVAE(
        nn.ResidualConvNet(IMAGE, GRID, **options),
        nn.VectorQuantizer(K, 3),
        decoders.Bernoulli(nn.ResidualConvNet(GRID, IMAGE, **options)),
    )
    x, y = images(), torch.eye(2).repeat(10, 1)
    fit(pair, (x, y), epochs=1, seed=0)
    assert not torch.allclose(reconstruct(pair, x, y), reconstruct(pair, x, y.flip(0)))
    assert sample(pair, 20, y).shape == x.shape
    assert log_likelihood(pair, x, y, num_samples=1).values.shape == (20,)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ({"quantizer": torch.nn.Linear(2, 2)}, TypeError, "must be an nn.VectorQuantizer, got Linear"),
        ({"encoder": "a"}, TypeError, "encoder must be a network, got str"),
        ({"decoder": 3}, TypeError, "decoder must be a module whose .* returns a distribution, got int"),
        ({"prior": 3}, TypeError, "prior must be a module"),
        ({"encoder": torch.nn.Identity()}, TypeError, "states no out_shape.*CategoricalGrid"),
        ({"encoder": nn.MLP(4, (2, 3, 3))}, ValueError, r"gives \(2, 3, 3\).*code_dim=3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, error, words):
    good = {
        "encoder": nn.MLP(4, GRID),
        "quantizer": nn.VectorQuantizer(K, 3),
        "decoder": decoders.Normal(nn.MLP(GRID, 4)),
    }
    with pytest.raises(error, match=words):
        models.VQVAE(**{**good, **parts})
