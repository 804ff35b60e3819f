"""VQ-VAEs of one level and of several: the bound by hand, what it trains, priors fitted to codes."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen import catalogue, data, decoders, models, nn, priors
from ppgen.catalogue import training
from ppgen.inference import (
    SVI,
    History,
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

IMAGE, GRID = (1, 5, 6), (3, 3, 3)
K = 6


def small(prior=None, **options):
    return models.VQVAE(
        nn.ResidualConvNet(IMAGE, GRID, channels=8, num_blocks=1),
        nn.VectorQuantizer(K, GRID[0], **options),
        decoders.Bernoulli(nn.ResidualConvNet(GRID, IMAGE, channels=8, num_blocks=1)),
        prior,
    )


def levels(num_levels=2, y=()):
    """Grids of 3 × 3, 2 × 2 and 1 × 1, each encoder and the decoder seeing all codes above."""
    grids = [(3, 3, 3), (4, 2, 2), (2, 1, 1)][:num_levels]
    small_net = {"channels": 8, "num_blocks": 1}
    return models.HierarchicalVQVAE(
        [nn.ResidualConvNet(IMAGE, g, context_shapes=[*grids[i + 1 :], *y], **small_net) for i, g in enumerate(grids)],
        [nn.VectorQuantizer(K + i, g[0]) for i, g in enumerate(grids)],
        decoders.Bernoulli(nn.ResidualConvNet(grids[0], IMAGE, context_shapes=[*grids[1:], *y], **small_net)),
    )


def images(n=20):
    return torch.bernoulli(torch.full((n, *IMAGE), 0.4))


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


# The pair


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


def catch(caught, **tensors):
    """Keeps what goes through a network while gradients are on, and has their gradients kept."""
    for tensor in tensors.values():
        if tensor.requires_grad:
            tensor.retain_grad()
            caught.update(tensors)


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


def _adam(parameters):
    return torch.optim.Adam(parameters, lr=5e-3)


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


# Several levels


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_levels_have_their_grids_and_their_bound(num_levels):
    pair, x = levels(num_levels), images()
    before = copy.deepcopy(pair.state_dict())
    history = fit(pair, x, epochs=2, seed=0)
    assert torch.isfinite(torch.tensor(history.loss)).all()
    still = [n for n, v in pair.state_dict().items() if torch.equal(v, before[n])]
    assert not still, f"did not move: {still}"
    codes = encode(pair, x)
    codes = {"z": codes} if num_levels == 1 else codes
    names = [f"z{i + 1}" for i in range(num_levels)] if num_levels > 1 else ["z"]
    assert [tuple(codes[n].shape[1:]) for n in names] == [(3, 3), (2, 2), (1, 1)][:num_levels]
    with torch.no_grad():
        e = [q.embed(codes[n]) for q, n in zip(pair.quantizers, names, strict=True)]
        expected = pair.decoder(*e).log_prob(x)
        for n, q in zip(names, pair.quantizers, strict=True):
            expected = expected - codes[n][0].numel() * math.log(q.codebook_size)
    estimate = log_likelihood(pair, x, num_samples=3)
    assert torch.allclose(estimate.values.float(), expected, atol=1e-4) and estimate.is_lower_bound
    assert reconstruct(pair, x).shape == sample(pair, 20).shape == x.shape
    assert len(pair.monitors) == num_levels


def test_one_level_is_the_vqvae_number_for_number():
    one, single, x = levels(1), small(), images()
    single.load_state_dict(
        {
            n.replace("encoders.0", "encoder").replace("quantizers.0", "quantizer"): v
            for n, v in one.state_dict().items()
        }
    )
    assert torch.equal(log_likelihood(one, x).values, log_likelihood(single, x).values)
    for pair in (one, single):
        torch.manual_seed(0)
        pair.loss = elbo()(pair.model, pair.guide, x).item()
    assert one.loss == single.loss


def test_the_lower_encoder_trains_the_upper_through_its_code():
    pair, x = levels(2), images(6)
    pair.quantizers[1].commitment = 0.0
    caught = {}
    pair.encoders[1].register_forward_hook(lambda m, i, out: catch(caught, h=out))
    pair.encoders[0].register_forward_pre_hook(lambda m, args: catch(caught, e=args[1]))
    pair.decoder.register_forward_pre_hook(lambda m, args: catch(caught, d=args[1]))
    elbo()(pair.model, pair.guide, x).backward()
    assert caught["e"].grad.abs().sum() > 0
    assert torch.allclose(caught["h"].grad, caught["e"].grad + caught["d"].grad, atol=1e-6)


def test_a_lower_prior_sees_the_codes_above():
    class Above(torch.nn.Module):
        """p(z1 | e2)."""

        def __init__(self):
            super().__init__()
            self.net = nn.MLP((4, 2, 2), 16, (3, 3, K))

        def forward(self, e):
            return dist.Categorical(logits=self.net(e)).to_event(2)

    pair, x = levels(2), images(100)
    fit(pair, x, epochs=3, seed=0)
    z = encode(pair, x)
    uniform = log_likelihood(pair, x, num_samples=1).mean
    bottom, above = Above(), pair.quantizers[1].embed(z["z2"]).detach()
    fit(models.ExplicitDensity(bottom), (z["z1"], above), epochs=30, seed=0, optimizer=_adam)
    pair.priors[0] = bottom
    assert log_likelihood(pair, x, num_samples=1).mean > uniform
    assert sample(pair, 3).shape == (3, *IMAGE)


def pixelcnn(shape, num_codes, context_shapes=(), channels=8, num_layers=2):
    """An autoregressive prior of grids of codes."""
    net = nn.GatedPixelCNN(
        (1, *shape),
        (num_codes, *shape),
        channels=channels,
        num_layers=num_layers,
        first_kernel_size=3,
        categories=num_codes,
        context_shapes=context_shapes,
    )
    return decoders.Autoregressive(decoders.Categorical(net, num_codes), event_shape=shape)


def test_a_pixelcnn_at_each_level_is_fitted_and_sampled_from_the_top_down():
    prototypes = torch.bernoulli(torch.full((3, *IMAGE), 0.5))
    pair, x = levels(2), prototypes[torch.arange(150) % 3]
    fit(pair, x, epochs=40, batch_size=50, seed=0, optimizer=_adam)
    z = encode(pair, x)
    uniform = log_likelihood(pair, x, num_samples=1)
    top, bottom = pixelcnn((2, 2), K + 1), pixelcnn((3, 3), K, [(4, 2, 2)])
    fit(models.ExplicitDensity(top), z["z2"], epochs=40, batch_size=50, seed=0, optimizer=_adam)
    above = pair.quantizers[1].embed(z["z2"])
    fit(models.ExplicitDensity(bottom), (z["z1"], above), epochs=40, batch_size=50, seed=0, optimizer=_adam)
    pair.priors[0], pair.priors[1] = bottom, top
    fitted = log_likelihood(pair, x, num_samples=1)
    gain = (top().log_prob(z["z2"]) + bottom(above).log_prob(z["z1"]) + 4 * math.log(K + 1) + 9 * math.log(K)).detach()
    assert torch.allclose((fitted.values - uniform.values).float(), gain, atol=1e-3)
    assert fitted.mean > -20 > uniform.mean
    drawn = sample(pair, 60, mean=True, seed=0)
    distance = (drawn.unsqueeze(1) - prototypes).abs().mean((2, 3, 4)).amin(1)
    assert (distance < 0.1).float().mean() > 0.8, "samples are like the data"
    assert torch.equal(decode(pair, z), reconstruct(pair, x)), "decoding draws nothing"


def test_levels_that_do_not_match_are_refused():
    encoder, quantizer, decoder = nn.MLP(4, GRID), nn.VectorQuantizer(K, 3), decoders.Normal(nn.MLP(GRID, 4))
    with pytest.raises(ValueError, match="2 encoders, 1 quantizers and 2 priors"):
        models.HierarchicalVQVAE([encoder, encoder], [quantizer], decoder)
    with pytest.raises(TypeError, match="encoders must be a list of modules"):
        models.HierarchicalVQVAE(encoder, [quantizer], decoder)
    with pytest.raises(ValueError, match="0 encoders"):
        models.HierarchicalVQVAE([], [], decoder)
    with pytest.raises(ValueError, match=r"HierarchicalVQVAE: an encoder gives \(2, 3, 3\)"):
        models.HierarchicalVQVAE([nn.MLP(4, (2, 3, 3))], [quantizer], decoder)


# The uniform prior


def test_the_grid_prior_is_uniform_until_it_learns():
    prior = priors.CategoricalGrid(5, (2, 3))
    assert not list(prior.parameters())
    z = prior().sample((7,))
    assert z.shape == (7, 2, 3) and z.max() < 5
    assert torch.allclose(prior().log_prob(z), torch.tensor(-6 * math.log(5)))
    learned = priors.CategoricalGrid(5, (2, 3), learn=True)
    z = torch.randint(3, (50, 2, 3))
    fit(
        models.ExplicitDensity(learned),
        z,
        epochs=300,
        batch_size=50,
        seed=0,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.1),
    )
    frequencies = torch.nn.functional.one_hot(z, 5).float().mean(0)
    assert torch.allclose(learned.logits.softmax(-1), frequencies, atol=0.02)


# By its name


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
