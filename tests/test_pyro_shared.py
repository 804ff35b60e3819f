"""Latents that all data share: trained, and refused with the way out where a datum's own likelihood is asked for."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro_examples import our_mean, pyros_mean
from torch import nn
from torch.distributions import constraints

from ppgen.inference import (
    SVI,
    ais,
    elbo,
    encode,
    fit,
    iwae,
    latent_report,
    log_likelihood,
    log_weights,
    repaired_log_likelihood,
)
from ppgen.models import Custom

DATA = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
K = 2


@config_enumerate
def mixture(data):
    """The mixture tutorial: shared weights, scale and locations, an assignment of each datum that is summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(K)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", K):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


SHARED = ["weights", "scale", "locs"]


def test_the_mixture_tutorial_is_trained_and_its_shared_latents_are_refused_with_the_way_out():
    torch.manual_seed(1)
    guide = AutoDelta(poutine.block(mixture, expose=SHARED))
    pair = Custom(mixture, guide)
    torch.manual_seed(3)
    loss = elbo()(pair.model, pair.guide, DATA)
    assert loss.item() == pytest.approx(
        -pyros_mean(pair, DATA, num_particles=1, objective=TraceEnum_ELBO) / len(DATA), rel=1e-5
    )
    history = fit(pair, DATA, epochs=30, batch_size=5, progress=False)
    assert history.loss[-1] < history.loss[0]
    for refused in (log_likelihood, latent_report):
        with pytest.raises(ValueError, match=r"'weights'.*shared by all data.*poutine\.condition"):
            refused(pair, DATA, num_samples=30)
    values = {name: value.detach() for name, value in encode(pair, DATA).items()}
    assert set(values) == set(SHARED)
    given = Custom(poutine.block(poutine.condition(mixture, data=values), hide=SHARED), lambda data: None)
    exact = (values["weights"].log() + dist.Normal(values["locs"], values["scale"]).log_prob(DATA[:, None])).logsumexp(
        -1
    )
    assert torch.allclose(log_likelihood(given, DATA, num_samples=1).values.float(), exact, atol=1e-5)


class Regression(PyroModule):
    """The regression tutorial: weights of a linear layer as random variables, and a shared noise."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


def test_the_regression_tutorial_is_trained_and_has_no_likelihood_of_a_datum():
    torch.manual_seed(1)
    x = torch.randn(200, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 3 + 0.1 * torch.randn(200)
    model = Regression()
    pair = Custom(model, AutoDiagonalNormal(model))
    pair.guide(x, y)  # an autoguide makes its parameters at its first call
    torch.manual_seed(3)
    loss = elbo()(pair.model, pair.guide, x, y)
    assert loss.item() == pytest.approx(-pyros_mean(pair, x, y, num_particles=1) / 200, rel=1e-5)
    fit(pair, (x, y), epochs=600, batch_size=200, optimizer=lambda p: torch.optim.Adam(p, lr=0.03), progress=False)
    found = encode(pair, x, y)
    assert set(found) == {"sigma", "linear.weight", "linear.bias"}  # and not the autoguide's own vector
    assert torch.allclose(found["linear.weight"], torch.tensor([[1.0, -2.0, 0.5]]), atol=0.1)
    for refused in (log_weights, log_likelihood, latent_report):
        with pytest.raises(ValueError, match=r"'sigma'.*shared by all data"):
            refused(pair, x, y, num_samples=30)


def guides():
    """The mixture tutorial's two: of what all share alone, and with assignments over the first, whose values stay."""
    global_guide = AutoDelta(poutine.block(mixture, expose=SHARED))

    @config_enumerate
    def full_guide(data):
        with poutine.block(hide_types=["param"]):  # keep our learned values of global parameters
            global_guide(data)
        with pyro.plate("data", len(data)):
            assignment_probs = pyro.param(
                "assignment_probs", torch.ones(len(data), K) / K, constraint=constraints.simplex
            )
            pyro.sample("assignment", dist.Categorical(assignment_probs))

    return global_guide, full_guide


def test_the_mixture_tutorials_full_guide_keeps_what_it_hides_and_learns_the_exact_assignments():
    torch.manual_seed(1)
    global_guide, full_guide = guides()
    globals_alone = Custom(mixture, global_guide)
    fit(globals_alone, DATA, epochs=100, batch_size=5, optimizer=fast, progress=False)
    before = encode(globals_alone, DATA)
    pair = Custom(mixture, full_guide)
    torch.manual_seed(3)
    loss = elbo()(pair.model, pair.guide, DATA)
    exact = -pyros_mean(pair, DATA, num_particles=1, objective=TraceEnum_ELBO) / len(DATA)
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    step = SVI(pair, optimizer=fast)  # its parameters belong to rows: no shuffling
    for _ in range(300):
        step.step(DATA)
    assert all(torch.equal(value, before[name]) for name, value in encode(globals_alone, DATA).items())
    logits = before["weights"].log() + dist.Normal(before["locs"], before["scale"]).log_prob(DATA[:, None])
    learned = transformed(pair.sites["assignment_probs"])
    assert torch.allclose(learned, logits.softmax(-1), atol=0.02)
    with pytest.raises(ValueError, match="shared by all data"):
        log_likelihood(pair, DATA)


def fast(parameters):
    return torch.optim.Adam(parameters, lr=0.1)


def transformed(unconstrained):
    return torch.distributions.transform_to(constraints.simplex)(unconstrained).detach()


def test_a_network_that_is_only_used_where_param_sites_are_hidden_stays():
    frozen, learned = nn.Linear(1, 1), nn.Linear(1, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(learned(z[..., None])[..., 0], 1.0), obs=x)

    def guide(x):
        with poutine.block(hide_types=["param"]):
            loc = frozen(x[:, None])[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)))

    for program, stays in ((guide, True), (lambda x: (guide(x), frozen(x[:, None])), False)):
        pair = Custom(model, program, frozen=frozen)
        before = {name: value.detach().clone() for name, value in pair.named_parameters()}
        fit(pair, torch.randn(20) + 3, epochs=1, progress=False)
        same = {name: torch.equal(value, before[name]) for name, value in pair.named_parameters() if name in before}
        assert same.pop("frozen.weight") == same.pop("frozen.bias") == stays
        assert not any(same.values())


@pytest.mark.parametrize("where", ["a list", "an attribute", "a new value"])
def test_an_autoguide_that_cannot_be_found_by_name_is_named(where):
    global_guide, held = guides()[0], type("Held", (), {})()

    def guide(data):
        {"a list": [global_guide_of()], "an attribute": [held]}.get(where)
        global_guide_of()(data)
        with pyro.plate("data", len(data)):
            pyro.sample("assignment", dist.Categorical(torch.ones(len(data), K) / K))

    def global_guide_of():
        return [global_guide][0]

    pair = Custom(mixture, guide)
    with pytest.raises(ValueError, match=r"call AutoDelta, which this Custom does not know.*autoguide=autoguide"):
        fit(pair, DATA, epochs=1, progress=False)
    assert fit(Custom(mixture, guide, autoguide=global_guide), DATA, epochs=1, progress=False).loss


@pytest.mark.parametrize("k", [5, 200])
def test_the_loss_of_a_datum_is_pyros_over_the_data_however_many_components_there_are(k):
    def model(x):
        with pyro.plate("components", k):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.mean(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("components", k):
            pyro.sample("loc", dist.Normal(torch.zeros(k), 0.1))

    losses = []
    for loss in (lambda: elbo()(model, guide, DATA), lambda: Trace_ELBO().loss(model, guide, DATA) / len(DATA)):
        torch.manual_seed(0)
        losses.append(torch.as_tensor(loss()).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_dirichlet_process_mixture_is_trained_with_plates_of_three_lengths_on_one_axis():
    """Assignments are drawn, so the gradient goes by the score: its mean is that of the sum over them by hand."""
    t, data = 3, torch.tensor([-2.0, -1.8, 2.0, 2.2])

    def weights(beta):
        return torch.cat([beta, torch.ones(1)]) * torch.cat([torch.ones(1), (1 - beta).cumprod(-1)])

    def model(data):
        with pyro.plate("beta_plate", t - 1):
            beta = pyro.sample("beta", dist.Beta(1.0, 1.1))
        with pyro.plate("mu_plate", t):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(weights(beta)))
            pyro.sample("obs", dist.Normal(mu[z], 1.0), obs=data)

    def guide(data):
        with pyro.plate("beta_plate", t - 1):
            pyro.sample("beta", dist.Delta(pyro.param("b", torch.tensor([0.3, 0.5]))))
        with pyro.plate("mu_plate", t):
            pyro.sample("mu", dist.Delta(pyro.param("m", torch.tensor([-1.0, 0.0, 1.0]))))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(logits=pyro.param("logits", torch.eye(4, t))))

    pair = Custom(model, guide)
    pair.guide(data)
    parameters = [pair.sites[name] for name in ("b", "m", "logits")]
    beta, mu, logits = parameters
    log_q = logits.log_softmax(-1)
    terms = weights(beta).log() + dist.Normal(mu, 1.0).log_prob(data[:, None]) - log_q
    shared = dist.Beta(1.0, 1.1).log_prob(beta).sum() + dist.Normal(0.0, 5.0).log_prob(mu).sum()
    exact = torch.autograd.grad(-((log_q.exp() * terms).sum() + shared) / 4, parameters)
    torch.manual_seed(0)
    mean = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(1000):
        found = torch.autograd.grad(elbo()(pair.model, pair.guide, data), parameters)
        mean = [m + g / 1000 for m, g in zip(mean, found, strict=True)]
    for one, other in zip(mean, exact, strict=True):
        assert torch.allclose(one, other, atol=0.15)
    assert fit(pair, data, epochs=2, batch_size=4, progress=False).loss
    for refused in (log_likelihood, ais, repaired_log_likelihood, latent_report):
        with pytest.raises(ValueError, match=r"differ in length.*shared by all data"):
            refused(pair, data)


@pytest.mark.parametrize("num_particles", [1, 5])
def test_the_score_of_a_shared_draw_is_weighed_by_all_data_together(num_particles):
    """A shared draw without a reparameterised sampler, as the tutorial has it: the gradient in closed form."""
    data = torch.tensor([1.0, 1.0, 1.0, 0.0])

    class Beta(dist.Beta):
        has_rsample = False

    def model(data):
        f = pyro.sample("f", dist.Beta(10.0, 10.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Bernoulli(f), obs=data)

    def guide(data):
        alpha = pyro.param("alpha", torch.tensor(9.0), constraint=constraints.positive)
        beta = pyro.param("beta", torch.tensor(12.0), constraint=constraints.positive)
        pyro.sample("f", Beta(alpha, beta))

    pair = Custom(model, guide)
    pair.guide(data)
    alpha, beta = (pair.sites[name].exp() for name in ("alpha", "beta"))
    q, p = torch.distributions.Beta(alpha, beta), torch.distributions.Beta(13.0, 11.0)  # the exact posterior
    exact = torch.autograd.grad(torch.distributions.kl_divergence(q, p) / 4, [pair.sites["alpha"], pair.sites["beta"]])
    torch.manual_seed(0)
    loss, times = elbo(num_particles=num_particles), 2000 // num_particles
    found = torch.zeros(2)
    for _ in range(times):
        own = torch.autograd.grad(loss(pair.model, pair.guide, data), [pair.sites["alpha"], pair.sites["beta"]])
        found += torch.stack(own) / times
    assert torch.allclose(found, torch.stack(exact), atol=0.1)


@pytest.mark.parametrize("refused", [log_likelihood, ais, repaired_log_likelihood, latent_report, iwae(3)])
def test_shared_latents_are_refused_by_their_own_name_everywhere(refused):
    """And not because their programs index by the batch, which some do as well."""
    model = Regression()
    pair = Custom(model, AutoDiagonalNormal(model))
    x = torch.randn(20, 3)
    with pytest.raises(ValueError, match=r"'sigma'.*shared by all data.*poutine\.condition"):
        refused(pair.model, pair.guide, x, x[:, 0]) if isinstance(refused, nn.Module) else refused(pair, x, x[:, 0])


def test_an_autoguides_kl_is_that_of_its_auxiliary_draws():
    """Two latent sites, one in a plate inside the data: the KL divergences of AutoNormal in closed form."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("words", 2, dim=-2):
                w = pyro.sample("w", dist.Normal(0.0, 2.0))
                pyro.sample("x", dist.Normal(z + w, 1.0), obs=x.T)

    x = torch.randn(5, 2)
    guide = AutoNormal(model, init_scale=0.3)
    pair = Custom(model, guide)
    latents = encode(pair, x)
    assert {name: tuple(z.shape) for name, z in latents.items()} == {"z": (5,), "w": (2, 5)}
    exact = {
        "z": torch.distributions.kl_divergence(dist.Normal(latents["z"], 0.3), dist.Normal(0.0, 1.0)).sum(),
        "w": torch.distributions.kl_divergence(dist.Normal(latents["w"], 0.3), dist.Normal(0.0, 2.0)).sum(),
    }
    report = latent_report(pair, x, num_samples=5000)
    for name, kl in exact.items():
        assert report.kl[name] == pytest.approx(kl.item() / 5, abs=0.05)
    assert our_mean(pair, x) == pytest.approx(pyros_mean(pair, x, nesting=2), rel=1e-5)


@pytest.mark.parametrize("plate", ["components", "k", "data"])
def test_the_score_of_what_all_data_share_is_so_whatever_the_guide_calls_its_plate(plate):
    """As many components as data: the model's plate says which of the two they are."""
    x = torch.tensor([0.5, -1.0, 2.0])

    def model(x):
        with pyro.plate("components", 3):
            b = pyro.sample("b", dist.Bernoulli(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b.sum(-1, keepdim=True) - 1.5 * b[..., :1], 1.0), obs=x)

    logits = torch.tensor([0.3, -0.4, 0.1], requires_grad=True)

    def guide(x):
        with pyro.plate(plate, 3):
            pyro.sample("b", dist.Bernoulli(logits=logits))

    loss = elbo(num_particles=4000)
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(loss(model, guide, x), logits)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    q = dist.Bernoulli(logits=logits).log_prob(every).sum(-1)
    joint = dist.Bernoulli(torch.tensor(0.4)).log_prob(every).sum(-1)
    joint = joint + dist.Normal(every.sum(-1, keepdim=True) - 1.5 * every[:, :1], 1.0).log_prob(x).sum(-1)
    (exact,) = torch.autograd.grad(-(q.exp() * (joint - q)).sum() / 3, logits)
    assert torch.allclose(found, exact, atol=0.03), (found, exact)
