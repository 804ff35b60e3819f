"""Incomplete data: exact marginals, training and evaluation with a mask, filling in, cleaning."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent, LowRankMultivariateNormal, MixtureSameFamily, MultivariateNormal, Normal

from ppgen import data, decoders, distributions, models, nn, posteriors, priors
from ppgen.distributions import marginal
from ppgen.inference import denoise, elbo, encode, fit, impute, log_likelihood
from ppgen.models import Custom
from ppgen.pair import data_plate, observed, sample

NAN = float("nan")


def covariance(d):
    root = torch.randn(d, d, dtype=torch.float64)
    return root @ root.T + 0.5 * torch.eye(d, dtype=torch.float64)


def masks(d):
    """Some patterns, among them everything and nothing."""
    return torch.stack([torch.ones(d), torch.zeros(d), *torch.bernoulli(torch.full((6, d), 0.5))]).bool()


def gaussians():
    loc, cov = torch.randn(4, dtype=torch.float64), covariance(4)
    factor, diagonal = torch.randn(4, 2, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.3
    low_rank = LowRankMultivariateNormal(loc, factor, diagonal)
    return {
        "full": MultivariateNormal(loc, cov),
        "full, Pyro's": dist.MultivariateNormal(loc, cov),
        "low rank": low_rank,
        "diagonal": Independent(Normal(loc, cov.diagonal().sqrt()), 1),
    }


@pytest.mark.parametrize("kind", gaussians())
def test_a_gaussian_is_marginalised_exactly(kind):
    whole = gaussians()[kind]
    cov = torch.diag(whole.variance) if kind == "diagonal" else whole.covariance_matrix
    value = torch.randn(4, dtype=torch.float64)
    for mask in masks(4):
        expected = torch.tensor(0.0, dtype=torch.float64)
        if mask.any():
            expected = MultivariateNormal(whole.mean[mask], cov[mask][:, mask]).log_prob(value[mask])
        incomplete = torch.where(mask, value, NAN)
        assert marginal(whole, mask).log_prob(incomplete) == pytest.approx(expected.item(), abs=1e-10)


def test_a_mixture_is_marginalised_component_by_component():
    locs, covs = torch.randn(3, 4, dtype=torch.float64), torch.stack([covariance(4) for _ in range(3)])
    logits = torch.randn(3, dtype=torch.float64)
    value, mask = torch.randn(8, 4, dtype=torch.float64), masks(4)
    torch_mixture = MixtureSameFamily(torch.distributions.Categorical(logits=logits), MultivariateNormal(locs, covs))
    for whole in (distributions.Mixture(logits, MultivariateNormal(locs, covs)), torch_mixture):
        got = marginal(whole, mask).log_prob(value)
        for n in range(8):
            m = mask[n]
            terms = [
                w + (MultivariateNormal(loc[m], cov[m][:, m]).log_prob(value[n, m]) if m.any() else 0)
                for w, loc, cov in zip(logits.log_softmax(0), locs, covs, strict=True)
            ]
            assert got[n] == pytest.approx(torch.stack(terms).logsumexp(0).item(), abs=1e-10)


FACTORISED = {
    "bernoulli": lambda: dist.Bernoulli(logits=torch.randn(5, 1, 3, 3)).to_event(3),
    "torch's bernoulli": lambda: Independent(torch.distributions.Bernoulli(logits=torch.randn(5, 1, 3, 3)), 3),
    "levels": lambda: distributions.CategoricalLevels(logits=torch.randn(5, 1, 3, 3, 7)).to_event(3),
    "logistic": lambda: distributions.DiscretizedLogistic(torch.randn(5, 1, 3, 3), torch.zeros(5, 1, 3, 3), 7).to_event(
        3
    ),
    "logistic mixture": lambda: distributions.LogisticMixture(
        torch.randn(5, 2, 3, 3), torch.randn(5, 2, 1, 3, 3), torch.zeros(5, 2, 1, 3, 3), torch.zeros(5, 2, 0, 3, 3), 7
    ),
    "continuous bernoulli": lambda: distributions.ContinuousBernoulli(torch.randn(5, 1, 3, 3)).to_event(3),
    "positive": lambda: dist.LogNormal(torch.randn(5, 1, 3, 3), 1.0).to_event(3),
}


@pytest.mark.parametrize("kind", FACTORISED)
def test_what_factorises_scores_its_observed_elements(kind):
    """The pieces add up: any mask and its complement together score the whole, and no gradient is spoilt by a gap."""
    whole = FACTORISED[kind]()
    value, mask = whole.sample(), torch.bernoulli(torch.full((5, 1, 3, 3), 0.5)).bool()
    parts = marginal(whole, mask).log_prob(torch.where(mask, value, NAN))
    rest = marginal(whole, ~mask).log_prob(torch.where(mask, NAN, value))
    assert torch.allclose(parts + rest, whole.log_prob(value), atol=1e-5)
    assert marginal(whole, None) is whole
    assert marginal(whole, torch.zeros_like(mask)).log_prob(value).abs().max() == 0
    completed = marginal(whole, mask).complete(value)
    assert torch.equal(completed[mask], value[mask]) and completed.isfinite().all()
    expanded = marginal(whole, mask).expand(torch.Size([4, 5]))
    assert expanded.log_prob(value).shape == (4, 5) and expanded.sample().shape == (4, 5, 1, 3, 3)


def test_a_gap_outside_the_support_leaves_the_gradient_alone():
    loc = torch.zeros(2, 3, requires_grad=True)
    value, mask = (
        torch.tensor([[1.0, 2.0, NAN], [NAN, 3.0, 1.0]]),
        torch.tensor([[True, True, False], [False, True, True]]),
    )
    marginal(dist.Gamma(loc.exp(), 1.0).to_event(1), mask).log_prob(value).sum().backward()
    assert loc.grad.isfinite().all() and (loc.grad[mask] != 0).all() and (loc.grad[~mask] == 0).all()


def test_refusals_say_why():
    flow = priors.Flow.maf(3, hidden=(8,))()
    mask = torch.tensor([True, False, True])
    with pytest.raises(ValueError, match=r"NormalizingFlow has no exact marginal.*depend on each other"):
        marginal(flow, mask)
    with pytest.raises(TypeError, match=r"boolean.*float32"):
        marginal(dist.Normal(torch.zeros(3), 1.0).to_event(1), mask.float())
    with pytest.raises(ValueError, match=r"shape \(3,\).*event \(4,\)"):
        marginal(dist.Normal(torch.zeros(4), 1.0).to_event(1), mask)
    colours = distributions.LogisticMixture(
        *(torch.zeros(s) for s in [(2, 2, 2), (2, 3, 2, 2), (2, 3, 2, 2), (2, 3, 2, 2)])
    )
    one_channel = torch.tensor([True, False, True])[:, None, None].expand(3, 2, 2)
    with pytest.raises(ValueError, match=r"some of their channels only"):
        marginal(colours, one_channel)


def test_rows_of_an_expanded_mixture_are_completed_each_by_draws_of_its_own():
    loc, cov = torch.randn(2, 3), covariance(3).float()
    mask, value = torch.tensor([True, False, False]), torch.zeros(500, 3)
    for components in (MultivariateNormal(loc, cov), Independent(Normal(loc, 1.0), 1)):
        d = marginal(distributions.Mixture(torch.zeros(2), components).expand((500,)), mask)
        found = d.complete(value)
        assert len(found.unique(dim=0)) == 500
        assert torch.allclose(found.mean(0), d.complete(value, mean=True)[0], atol=0.5)


def test_a_scalar_is_marginalised():
    for observed_at, expected in ((True, -0.9189), (False, 0.0)):
        d = marginal(Normal(torch.tensor(0.0), 1.0), torch.tensor(observed_at))
        assert d.log_prob(torch.tensor(0.0)).item() == pytest.approx(expected, abs=1e-4)


def test_completion_is_the_conditional_of_the_gaussian():
    """Draws of the missing elements have the conditional mean and covariance of the textbook."""
    loc, cov = torch.randn(4, dtype=torch.float64), covariance(4)
    mask, value = torch.tensor([True, False, True, False]), torch.randn(4, dtype=torch.float64)
    gain = cov[~mask][:, mask] @ cov[mask][:, mask].inverse()
    mean = loc[~mask] + gain @ (value[mask] - loc[mask])
    rest = cov[~mask][:, ~mask] - gain @ cov[mask][:, ~mask]
    incomplete = torch.where(mask, value, NAN)
    low_rank = LowRankMultivariateNormal(
        loc, torch.linalg.cholesky(cov - 0.1 * torch.eye(4)), torch.full((4,), 0.1).double()
    )
    for whole in (MultivariateNormal(loc, cov), low_rank):
        d = marginal(whole, mask)
        assert torch.allclose(d.complete(incomplete, mean=True)[~mask], mean)
        draws = d.expand(torch.Size([40_000])).complete(incomplete)
        assert torch.equal(draws[:, mask], value[mask].expand(40_000, 2))
        assert torch.allclose(draws[:, ~mask].mean(0), mean, atol=0.08)
        assert torch.allclose(draws[:, ~mask].T.cov(), rest, atol=0.15)
    alone = distributions.Mixture(torch.zeros(2).double(), MultivariateNormal(loc.expand(2, 4), cov))  # twice the same
    assert torch.allclose(marginal(alone, mask).complete(incomplete, mean=True)[~mask], mean)
    assert marginal(alone, mask).complete(incomplete).isfinite().all()


def linear(x=None, *, mask=None):
    """A latent of two coordinates and x = W z + noise: everything about it is known."""
    with data_plate(x):
        z = sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return sample("x", marginal(dist.Normal(z @ WEIGHT.T, SCALE).to_event(1), mask), obs=x)


def rough(x, *, mask=None):
    """A proposal that is near, and not exact."""
    with data_plate(x):
        sample("z", dist.Normal(observed(x, mask) @ WEIGHT * 0.2, 0.9).to_event(1))


WEIGHT, SCALE = torch.tensor([[1.0, 0.0], [0.5, -1.0], [1.0, 1.0], [0.0, 0.7]]), 0.7
WHOLE = MultivariateNormal(torch.zeros(4), WEIGHT @ WEIGHT.T + SCALE**2 * torch.eye(4))


@pytest.fixture
def incomplete():
    x = WHOLE.sample((12,))
    mask = torch.bernoulli(torch.full(x.shape, 0.6)).bool()
    mask[0] = False
    return torch.where(mask, x, NAN), mask


def test_the_likelihood_is_that_of_what_was_observed(incomplete):
    x, mask = incomplete
    estimate = log_likelihood(Custom(linear, rough), x, mask=mask, num_samples=4000)
    exact = marginal(WHOLE, mask).log_prob(x)
    # Four standard errors over twelve data: one miss in a thousand runs, and the noise is fixed.
    assert ((estimate.values - exact).abs() <= 4 * estimate.mc_standard_error + 1e-5).all()
    assert exact[0] == 0


def test_filling_in_is_the_conditional_mean_whatever_the_guide(incomplete):
    x, mask = incomplete
    pair = Custom(linear, rough)
    filled = impute(pair, x, mask=mask, num_samples=20_000)
    expected = marginal(WHOLE, mask).complete(x, mean=True)
    assert torch.equal(filled[mask], x[mask])
    assert torch.allclose(filled, expected, atol=0.06)
    draws = torch.stack([impute(pair, x, mask=mask, num_samples=300, mean=False, seed=s) for s in range(200)])
    assert torch.equal(draws[:, mask], x[mask].expand(200, -1))
    assert torch.allclose(draws.mean(0), expected, atol=0.4)
    scale = marginal(WHOLE, mask).expand(torch.Size([4000, 12])).complete(x).std(0)
    assert torch.allclose(draws.std(0)[~mask], scale[~mask], rtol=0.25)


def test_filling_in_sums_over_enumerated_latents():
    """A mixture whose component is enumerated: the answer is the responsibilities' average."""
    locs = torch.tensor([[-2.0, -1.0], [2.0, 3.0]])

    def model(x=None, *, mask=None):
        with data_plate(x):
            k = sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            return sample("x", marginal(dist.Normal(locs[k], 1.0).to_event(1), mask), obs=x)

    def guide(x, *, mask=None):
        pass

    x, mask = torch.tensor([[0.1, NAN], [NAN, 0.5]]), torch.tensor([[True, False], [False, True]])
    filled = impute(Custom(model, guide), x, mask=mask)
    for n, (seen, missing) in enumerate(((0, 1), (1, 0))):
        joint = torch.tensor([0.3, 0.7]) * Normal(locs[:, seen], 1.0).log_prob(x[n, seen]).exp()
        assert filled[n, missing] == pytest.approx((joint / joint.sum() @ locs[:, missing]).item(), abs=1e-5)


TRANSITION = torch.tensor([[0.9, 0.1], [0.2, 0.8]])


def chain(x, y, inside=True):
    """Of four hidden states the last emits x, and those before it y: a state's axis is that of the one before last."""
    with data_plate(x):
        state = torch.tensor(0)
        for t in pyro.markov(range(4)):
            state = sample(f"s{t}", dist.Categorical(TRANSITION[state]), infer={"enumerate": "parallel"})
            if t < 3:
                sample(f"y{t}", dist.Normal(state.float(), 1.0), obs=y[..., t])
            elif inside:
                sample("x", dist.Normal(4.0 * state, 1.0), obs=x)
        if not inside:
            sample("x", dist.Normal(4.0 * state, 1.0), obs=x)


def test_denoising_sums_over_the_states_of_a_chain():
    x, y = 2.0 + torch.randn(6), torch.randn(6, 3)
    log_joint = torch.zeros(2, 6)
    log_joint[1] = -torch.inf
    for t in range(4):
        log_joint = (log_joint.T.unsqueeze(-1) + TRANSITION.log()).logsumexp(1).T
        log_joint = log_joint + (
            dist.Normal(torch.arange(2.0)[:, None], 1.0).log_prob(y[:, t])
            if t < 3
            else dist.Normal(4 * torch.arange(2.0)[:, None], 1.0).log_prob(x)
        )
    found = denoise(Custom(chain, lambda x, y: None), x, y, num_samples=1)
    assert torch.allclose(found, 4 * log_joint.softmax(0)[1], atol=1e-5)
    outside = Custom(lambda x, y: chain(x, y, inside=False), lambda x, y: None)
    with pytest.raises(ValueError, match=r"'x' has an axis .* inside its loop"):
        denoise(outside, x, y, num_samples=1)


def test_denoising_weighs_a_draw_by_what_x_does_not_depend_on():
    """A sum over classes that only the context has a part in, and a class whose own density is masked."""
    prior, means = torch.tensor([0.1, 0.9]), torch.tensor([-1.0, 1.0])
    shown = torch.tensor([True, False, True, False])

    def model(x, y):
        with data_plate(x):
            z = sample("z", dist.Normal(0.0, 1.0))
            j = sample("j", dist.Categorical(prior), infer={"enumerate": "parallel"})
            sample("y", dist.Normal(z + means[j], 0.5), obs=y)
            with pyro.poutine.mask(mask=shown):
                k = sample("k", dist.Categorical(prior), infer={"enumerate": "parallel"})
            sample("x", dist.Normal(z + means[k], 1.0), obs=x)

    def guide(x, y):
        with data_plate(x):
            sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    pair, x, y = Custom(model, guide), torch.tensor([0.0, 0.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, 2.0])
    z = torch.linspace(-6, 6, 4001)[:, None]
    log_y = (prior.log() + dist.Normal(z[..., None] + means, 0.5).log_prob(y[:, None])).logsumexp(-1)
    log_joint = prior.log() + dist.Normal(z[..., None] + means, 1.0).log_prob(x[:, None])
    log_joint = log_joint + (log_y + dist.Normal(0.0, 1.0).log_prob(z))[..., None]
    weights = (log_joint - log_joint.logsumexp((0, 2), keepdim=True)).exp()
    exact = (weights * (z[..., None] + means)).sum((0, 2))
    assert torch.allclose(denoise(pair, x, y, num_samples=20000), exact, atol=0.05)


def test_denoising_is_the_posterior_mean():
    x = WHOLE.sample((6,))
    posterior_precision = torch.eye(2) + WEIGHT.T @ WEIGHT / SCALE**2
    expected = x @ WEIGHT / SCALE**2 @ posterior_precision.inverse() @ WEIGHT.T
    assert torch.allclose(denoise(Custom(linear, rough), x, num_samples=20_000), expected, atol=0.05)


@pytest.mark.parametrize("lowest", [2.5, 2.8])
def test_draws_that_could_not_have_led_to_a_datum_have_no_share(lowest):
    """Most blocks of draws hold none that could have; those that do are all that counts."""

    def model(x=None, *, mask=None):
        with data_plate(x):
            z = sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("high", torch.where(z > lowest, 0.0, -torch.inf))
            return sample("x", marginal(dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).to_event(1), mask), obs=x)

    def guide(x, *, mask=None):
        with data_plate(x):
            sample("z", dist.Normal(0.0, 1.0))

    x, mask = torch.tensor([[3.0, NAN]]).expand(100, 2), torch.tensor([[True, False]]).expand(100, 2)
    z = torch.linspace(lowest, 8, 20_000, dtype=torch.float64)
    density = (-(z**2) / 2 - (3 - z) ** 2 / 2).exp()
    expected, pair = (z * density).sum() / density.sum(), Custom(model, guide)
    filled, drawn = (impute(pair, x, mask=mask, num_samples=5000, mean=m)[:, 1] for m in (True, False))
    assert filled.isfinite().all() and filled.mean().item() == pytest.approx(expected.item(), abs=0.05)
    assert drawn.mean().item() == pytest.approx(expected.item(), abs=0.4), "one draw each, with a deviation of 1"
    assert denoise(pair, x, mask=mask, num_samples=5000).mean().item() == pytest.approx(expected.item(), abs=0.05)
    for mean in (True, False):
        with pytest.raises(ValueError, match="All weights of datum 0 are zero"):
            impute(pair, x, mask=mask, num_samples=20, mean=mean)


def test_data_that_are_drawn_anew_at_each_read_are_read_once():
    """Two pixels that are always equal: what is filled in goes with what was observed beside it."""

    class Twins(torch.nn.Module):
        def forward(self):
            logits = torch.tensor([[9.0, 9.0], [-9.0, -9.0]])
            pixels = dist.Independent(dist.Bernoulli(logits=logits), 1)
            return MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), pixels)

    x = data.DynamicBinarization(torch.full((40, 2), 0.5))
    mask = torch.tensor([[True, False]]).expand(40, 2)
    pair = models.ExplicitDensity(Twins())
    filled = impute(pair, x, mask=mask, num_samples=2)
    assert torch.equal(filled[:, 0], filled[:, 1].round()) and 0 < filled[:, 0].mean() < 1
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    estimates = [log_likelihood(pair, x, num_samples=2, seed=s) for s in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected), "torch's generator is given back"
    assert torch.equal(estimates[0].values, estimates[1].values) and estimates[0].data == estimates[1].data
    assert estimates[0].data != estimates[2].data


def test_weights_that_are_no_numbers_are_refused():
    def model(x):
        with data_plate(x):
            z = sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("bad", torch.where(x > 2.0, torch.inf, 0.0))
            sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="The weights of datum 3 are not finite"):
        denoise(Custom(model, guide), torch.arange(6.0))


def small_vae(**options):
    width = 12 if options.get("sees_mask") else 6
    return models.VAE(
        priors.StandardNormal(2),
        decoders.Bernoulli(nn.MLP(2, 16, 6)),
        posteriors.DiagNormal(nn.MLP(width, 16, 4)),
        **options,
    )


def patterned(n):
    """Two kinds of rows, each the other's opposite."""
    kind = torch.bernoulli(torch.full((n, 1), 0.5))
    clean = (kind == torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])).float()
    return torch.where(torch.rand(n, 6) < 0.05, 1 - clean, clean)


@pytest.mark.parametrize("sees_mask", [False, True])
def test_a_model_learns_from_incomplete_data(sees_mask):
    x = patterned(600)
    mask = torch.bernoulli(torch.full(x.shape, 0.7)).bool()
    vae = small_vae(sees_mask=sees_mask)
    gap = torch.where(mask, x, NAN)
    history = fit(vae, gap, mask=mask, epochs=60, batch_size=50, seed=0, validation=gap, validation_mask=mask,
                  optimizer=lambda p: torch.optim.Adam(p, 1e-2), progress=False)  # fmt: skip
    assert history.validation[-1] < history.validation[0]
    right = impute(vae, gap, mask=mask, num_samples=100)
    accuracy = ((right > 0.5) == (x > 0.5))[~mask].float().mean()
    assert accuracy > 0.85  # 0.5 by chance, 0.95 if the kind of row is known
    assert encode(vae, gap, mask=mask).isfinite().all()
    whole = torch.ones_like(mask)
    both = (log_likelihood(vae, x, num_samples=50), log_likelihood(vae, x, mask=whole, num_samples=50))
    assert torch.equal(both[0].values, both[1].values)


def test_missing_values_are_never_looked_at():
    x, mask = patterned(20), torch.bernoulli(torch.full((20, 6), 0.5)).bool()
    vae = small_vae()
    states = []
    for filler in (NAN, 0.0, 1.0):
        copied = copy.deepcopy(vae)
        fit(
            copied,
            torch.where(mask, x, filler),
            mask=mask,
            epochs=2,
            seed=0,
            progress=False,
            loss=elbo(num_particles=3),
        )
        states.append(torch.cat([p.flatten() for p in copied.parameters()]))
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])


def test_bad_masks_are_refused_before_anything_changes():
    x, vae = patterned(10), small_vae()
    before = copy.deepcopy(vae.state_dict())
    good = torch.ones(10, 6).bool()
    with pytest.raises(TypeError, match=r"mask must be boolean.*float32"):
        fit(vae, x, mask=good.float(), epochs=1)
    with pytest.raises(ValueError, match=r"mask has shape \(10, 5\) and x \(10, 6\)"):
        fit(vae, x, mask=good[:, 1:], epochs=1)
    with pytest.raises(ValueError, match="validation_mask was given without validation data"):
        fit(vae, x, validation_mask=good, epochs=1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x))
    with pytest.raises(TypeError, match="mask= is for data in memory"):
        fit(vae, loader, mask=good, epochs=1)
    with pytest.raises(ValueError, match="num_samples"):
        impute(vae, x, mask=good, num_samples=0)

    def model(x=None):
        with data_plate(x):
            z = sample("z", dist.Normal(0.0, 1.0))
            return sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with data_plate(x):
            sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(TypeError, match=r"the model of this Custom takes none.*marginal"):
        log_likelihood(Custom(model, guide), x[:, 0], mask=good[:, 0])
    flow_decoder = models.VAE(priors.StandardNormal(2), priors.Flow.maf(6, context_dim=2, hidden=(8,)), vae.posterior)
    with pytest.raises(ValueError, match=r"NormalizingFlow has no exact marginal"):
        fit(flow_decoder, x, mask=good, epochs=1, progress=False)

    def ignores(x=None, *, mask=None):
        return model(x)

    def ignoring(x, *, mask=None):
        return guide(x)

    with pytest.raises(ValueError, match="whatever the mask"):
        impute(Custom(ignores, ignoring), x[:, 0], mask=good[:, 0])
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("levels", [None, 256, 300])
def test_a_mask_is_plainly_seen_beside_levels(levels):
    """A network that rescales levels rescales the channels of the mask with them."""
    net = nn.MLP(12, 16, 4, levels=levels)
    decoder = decoders.DiscretizedLogistic(nn.MLP(2, decoders.DiscretizedLogistic.outputs_shape((6,))))
    vae = models.VAE(priors.StandardNormal(2), decoder, posteriors.DiagNormal(net), sees_mask=True)
    seen = []
    net.hidden.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, 6:]))
    x, mask = torch.randint(256, (3, 6), dtype=torch.uint8), torch.tensor([[True, False] * 3] * 3)
    vae.guide(x, mask=mask)
    low, high = (-1.0, 1.0) if levels else (0.0, 1.0)
    assert torch.allclose(seen[0], torch.where(mask, high, low))
    vae.guide(x)
    assert torch.allclose(seen[1], torch.tensor(high)), "all of it was observed"


@pytest.mark.parametrize("kind", ["one of two", "none"])
def test_it_is_the_observation_of_the_first_member_that_is_denoised(kind):
    """Found by its values where the program made another tensor of them."""

    def model(x, y):
        with data_plate(x):
            z = sample("z", dist.Normal(0.0, 1.0))
            sample("a", dist.Normal(z, 1.0), obs=x + 0.0 if kind == "one of two" else x + 1.0)
            sample("b", dist.Normal(5 + z, 1.0), obs=y + 0.0)

    def guide(x, y):
        with data_plate(x):
            sample("z", dist.Normal(x / 2, 0.7))

    x, y = torch.tensor([0.5, -1.0]), torch.tensor([5.0, 4.0])
    if kind == "none":
        with pytest.raises(ValueError, match=r"\['a', 'b'\], and which of these sites .*obs=x"):
            denoise(Custom(model, guide), x, y, num_samples=50)
    else:
        found = denoise(Custom(model, guide), x, y, num_samples=5000)
        assert torch.allclose(found, (x + y - 5) / 3, atol=0.1)
