"""Programs with the structure of Pyro's published examples go in as they are, and each is held to an oracle.

Names of sites, plates, ``pyro.module`` calls and ``infer`` dictionaries are those of the examples; sizes are small.
"""

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from ppgen.inference import (
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
from ppgen.pair import Custom

PIXELS, Z = 12, 2


def mlp(*sizes: int) -> nn.Sequential:
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.Softplus())]
    return nn.Sequential(*layers[:-1])


def pyros_mean(pair, *batch, num_particles=7, nesting=1, objective=Trace_ELBO):
    """The ELBO of all data together, as Pyro has it, from the draws that follow this seed."""
    torch.manual_seed(3)
    loss = objective(num_particles=num_particles, vectorize_particles=num_particles > 1, max_plate_nesting=nesting)
    with torch.no_grad():
        return -loss.loss(pair.model, pair.guide, *batch)


def our_mean(pair, *batch, num_particles=7):
    torch.manual_seed(3)
    with torch.no_grad():
        return log_weights(pair, *batch, num_samples=num_particles).mean(0).sum().item()


class Encoder(nn.Module):
    def __init__(self, in_features):
        super().__init__()
        self.hidden, self.loc, self.log_scale = mlp(in_features, 8), nn.Linear(8, Z), nn.Linear(8, Z)

    def forward(self, x):
        hidden = nn.functional.softplus(self.hidden(x.reshape(-1, x.shape[-1])))
        return self.loc(hidden), self.log_scale(hidden).exp()


class VAE(nn.Module):
    """The variational autoencoder: modules by name, sites ``latent`` and ``obs``, probabilities from a sigmoid."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(PIXELS), nn.Sequential(mlp(Z, 8, PIXELS), nn.Sigmoid())

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], Z, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], Z, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder.forward(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, PIXELS))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


class SSVAE(nn.Module):
    """The semi-supervised M2: a plate without a size, a class that is observed or enumerated in the guide."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.encoder_y = nn.Sequential(mlp(PIXELS, 8, self.classes), nn.Softmax(-1))
        self.encoder_z = mlp(PIXELS + self.classes, 8, 2 * Z)
        self.decoder = nn.Sequential(mlp(Z + self.classes, 8, PIXELS), nn.Sigmoid())

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        with pyro.plate("data"):
            prior_loc, prior_scale = xs.new_zeros([batch_size, Z]), xs.new_ones([batch_size, Z])
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            alpha_prior = xs.new_ones([batch_size, self.classes]) / (1.0 * self.classes)
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            loc = self.decoder(joined(zs, ys))
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                alpha = self.encoder_y(xs)
                ys = pyro.sample("y", dist.OneHotCategorical(alpha))
            loc, log_scale = self.encoder_z(joined(xs, ys)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def joined(*parts):
    """Concatenation that broadcasts, as the example's network has it."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


class CVAE(nn.Module):
    """The conditional one: it picks the missing pixels by a boolean index, which no plate of particles survives."""

    def __init__(self):
        super().__init__()
        self.baseline_net = nn.Sequential(mlp(PIXELS, 8, PIXELS), nn.Sigmoid())
        self.prior_net, self.recognition_net = Encoder(PIXELS), Encoder(PIXELS)
        self.generation_net = nn.Sequential(mlp(Z, 8, PIXELS), nn.Sigmoid())

    @staticmethod
    def together(xs, ys):
        both = xs.clone()
        both[xs == -1] = ys[xs == -1]
        return both.view(-1, PIXELS)

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        batch_size = xs.shape[0]
        with pyro.plate("data"):
            with torch.no_grad():
                y_hat = self.baseline_net(xs).view(xs.shape)
            prior_loc, prior_scale = self.prior_net(self.together(xs, y_hat))
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            loc = self.generation_net(zs)
            if ys is not None:
                mask_loc = loc[(xs == -1).view(-1, PIXELS)].view(batch_size, -1)
                mask_ys = ys[xs == -1].view(batch_size, -1)
                pyro.sample("y", dist.Bernoulli(mask_loc, validate_args=False).to_event(1), obs=mask_ys)
            else:
                pyro.deterministic("y", loc.detach())
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                y_hat = self.baseline_net(xs).view(xs.shape)
                loc, scale = self.prior_net(self.together(xs, y_hat))
            else:
                loc, scale = self.recognition_net(self.together(xs, ys))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class DMM(nn.Module):
    """The deep Markov model: a latent a step, sequences of several lengths, masks inside scales for annealing."""

    notes, rnn_dim = 3, 5

    def __init__(self):
        super().__init__()
        self.emitter = nn.Sequential(mlp(Z, 6, self.notes), nn.Sigmoid())
        self.trans, self.combiner = mlp(Z, 6, 2 * Z), mlp(Z + self.rnn_dim, 6, 2 * Z)
        self.rnn = nn.RNN(self.notes, self.rnn_dim, nonlinearity="relu", batch_first=True)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(Z)), nn.Parameter(torch.zeros(Z))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, self.rnn_dim))

    def model(self, mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=1.0):
        T_max = mini_batch.size(1)
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(mini_batch.size(0), self.z_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, T_max + 1)):
                z_loc, log_scale = self.trans(z_prev).chunk(2, -1)
                with poutine.scale(None, annealing_factor):
                    z_t = pyro.sample(
                        f"z_{t}",
                        dist.Normal(z_loc, log_scale.exp()).mask(mini_batch_mask[:, t - 1 : t]).to_event(1),
                    )
                emission_probs_t = self.emitter(z_t)
                pyro.sample(
                    f"obs_x_{t}",
                    dist.Bernoulli(emission_probs_t).mask(mini_batch_mask[:, t - 1 : t]).to_event(1),
                    obs=mini_batch[:, t - 1, :],
                )
                z_prev = z_t

    def guide(self, mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=1.0):
        T_max = mini_batch.size(1)
        pyro.module("dmm", self)
        h_0_contig = self.h_0.expand(1, mini_batch.size(0), self.rnn.hidden_size).contiguous()
        rnn_output, _ = self.rnn(mini_batch_reversed, h_0_contig)
        if isinstance(rnn_output, nn.utils.rnn.PackedSequence):
            rnn_output, _ = nn.utils.rnn.pad_packed_sequence(rnn_output, batch_first=True)
        rnn_output = backwards(rnn_output, mini_batch_seq_lengths)
        z_prev = self.z_q_0.expand(mini_batch.size(0), self.z_q_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, T_max + 1)):
                z_loc, log_scale = self.combiner(joined(z_prev, rnn_output[:, t - 1, :])).chunk(2, -1)
                z_dist = dist.Normal(z_loc, log_scale.exp())
                with poutine.scale(None, annealing_factor):
                    z_prev = pyro.sample(f"z_{t}", z_dist.mask(mini_batch_mask[:, t - 1 : t]).to_event(1))


def backwards(sequences, lengths):
    """Each sequence from its own end to its start, zeros behind it."""
    steps = torch.arange(sequences.shape[1])
    index = (lengths[:, None] - 1 - steps).clamp(min=0)
    flipped = sequences.gather(1, index[..., None].expand_as(sequences))
    return torch.where(steps[None, :, None] < lengths[:, None, None], flipped, 0.0)


def sequences(n=5, steps=4):
    lengths = torch.tensor([4, 4, 3, 2, 1])[:n]
    mask = (torch.arange(steps) < lengths[:, None]).float()
    data = torch.bernoulli(torch.full((n, steps, DMM.notes), 0.4)) * mask[..., None]
    return data, backwards(data, lengths), mask, lengths


def images(n=6):
    return torch.bernoulli(torch.full((n, PIXELS), 0.5))


def incomplete(x):
    """The first half of each image hidden, as the example's data have it: −1 where the model is to fill in."""
    return torch.where(torch.arange(PIXELS) < PIXELS // 2, torch.tensor(-1.0), x)


def pair_of(program):
    """Without Custom it is a pair, too; its ``pyro.module`` calls then go to Pyro's global store."""
    return Custom(program.model, program.guide)


def enumerated(program):
    return Custom(program.model, config_enumerate(program.guide, "parallel", expand=True))


def cases():
    labels = torch.eye(SSVAE.classes)[[0, 1, 2, 0, 1, 2]]
    return {
        "vae": (pair_of(VAE()), (images(),)),
        "ss-vae with labels": (pair_of(SSVAE()), (images(), labels)),
        "ss-vae without": (pair_of(SSVAE()), (images(),)),
        "ss-vae enumerated": (enumerated(SSVAE()), (images(),)),
        "cvae": (pair_of(CVAE()), (incomplete(x := images()), x)),
        "dmm": (pair_of(DMM()), sequences()),
    }


NAMES = list(cases())


@pytest.mark.parametrize("name", NAMES)
def test_all_of_inference_takes_the_program_as_it_is(name):
    torch.manual_seed(0)
    pair, batch = cases()[name]
    n = len(batch[0])
    before = [p.clone() for p in pair.parameters()]
    assert log_weights(pair, *batch, num_samples=4).shape == (4, n)
    estimate = log_likelihood(pair, *batch, num_samples=30)
    assert estimate.values.shape == (n,) and estimate.values.isfinite().all()
    report = latent_report(pair, *batch)
    assert sum(report.kl.values()) > 0
    z = encode(pair, *batch)
    for value in z.values() if isinstance(z, dict) else [z]:
        assert len(value) == n and value.isfinite().all()
    for loss in (elbo(), iwae(3)):
        history = fit(pair, batch, epochs=1, batch_size=3, loss=loss, progress=False)
        assert 0 < history.loss[0] < 40  # nats of a dozen binary pixels: a plate without a size once changed the sign
    assert any(not torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))


def test_two_instances_are_trained_without_custom_too(global_param_store):
    x = images()
    for _ in range(2):
        vae = VAE()
        before = [p.clone() for p in vae.parameters()]
        fit(vae, x, epochs=1, progress=False)
        assert not any(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
        assert log_likelihood(vae, x, num_samples=30).values.isfinite().all()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("cvae", "ss-vae enumerated")])
def test_the_mean_weight_is_pyros_elbo_draw_by_draw(name):
    torch.manual_seed(0)
    pair, batch = cases()[name]
    assert our_mean(pair, *batch) == pytest.approx(pyros_mean(pair, *batch), rel=1e-5)


@pytest.mark.parametrize("name", ["vae", "ss-vae with labels", "dmm"])
def test_the_training_loss_is_pyros_per_datum(name):
    torch.manual_seed(0)
    pair, batch = cases()[name]
    torch.manual_seed(3)
    loss = elbo()(pair.model, pair.guide, *batch)
    assert loss.item() == pytest.approx(-pyros_mean(pair, *batch, num_particles=1) / len(batch[0]), rel=1e-5)


def test_the_enumerated_training_loss_is_pyros():
    torch.manual_seed(0)
    pair, batch = cases()["ss-vae enumerated"]
    torch.manual_seed(3)
    loss = elbo()(pair.model, pair.guide, *batch)
    exact = -pyros_mean(pair, *batch, num_particles=1, objective=TraceEnum_ELBO) / len(batch[0])
    assert loss.item() == pytest.approx(exact, rel=1e-5)


def test_the_mean_of_an_analytic_kl_is_that_of_mean_field():
    torch.manual_seed(0)
    pair, batch = cases()["vae"]
    torch.manual_seed(3)
    loss = elbo(analytic_kl=True)(pair.model, pair.guide, *batch)
    exact = -pyros_mean(pair, *batch, num_particles=1, objective=TraceMeanField_ELBO) / len(batch[0])
    assert loss.item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("enumerate_guide", [False, True])
def test_the_likelihood_of_m2_is_its_sum_over_classes(enumerate_guide):
    """The decoder without z: log p(x) is a sum of three Bernoulli products, and every class is weighed rightly."""
    torch.manual_seed(0)
    m2, x = SSVAE(), images(40)
    with torch.no_grad():
        m2.decoder[0][0].weight[:, :Z] = 0.0
        m2.encoder_z[-1].weight.zero_()
        m2.encoder_z[-1].bias.zero_()  # then q(z | x, y) is the prior
        loc = m2.decoder(torch.cat([torch.zeros(3, Z), torch.eye(3)], -1))
    exact = (dist.Bernoulli(loc).to_event(1).log_prob(x[:, None]) - math.log(3)).logsumexp(-1)
    estimate = log_likelihood(enumerated(m2) if enumerate_guide else pair_of(m2), x, num_samples=2000)
    assert (estimate.values - exact).abs().max() < 0.1
    assert estimate.mean == pytest.approx(exact.mean().item(), abs=0.02)


def test_particles_as_rows_are_what_a_loop_over_draws_gives():
    """The conditional example cannot run under a plate of particles: its weights against those of single runs."""
    torch.manual_seed(0)
    cvae, xs, ys = CVAE(), incomplete(x := images()), x
    pair = pair_of(cvae)
    with pytest.raises(IndexError):
        pyros_mean(pair, xs, ys)
    torch.manual_seed(5)
    with torch.no_grad():
        found = log_weights(pair, xs, ys, num_samples=3)
        torch.manual_seed(5)
        loc, scale = cvae.recognition_net(cvae.together(xs, ys))
        z = dist.Normal(loc.repeat(3, 1), scale.repeat(3, 1)).sample().unflatten(0, (3, -1))
        prior = cvae.prior_net(cvae.together(xs, cvae.baseline_net(xs)))
        hidden = (xs == -1)[0]
        log_p = dist.Bernoulli(cvae.generation_net(z)[..., hidden]).log_prob(ys[:, hidden]).sum(-1)
        expected = log_p + dist.Normal(*prior).log_prob(z).sum(-1) - dist.Normal(loc, scale).log_prob(z).sum(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    for several in (
        lambda: elbo(num_particles=2)(pair.model, pair.guide, xs, ys),
        lambda: repaired_log_likelihood(pair, xs, ys, num_samples=30),
        lambda: ais(pair, xs, ys, num_chains=2, num_temperatures=3),
    ):
        with pytest.raises(ValueError, match=r"many particles at once.*log_likelihood and iwae\(k\) take it"):
            several()


def test_masked_steps_and_annealing_leave_the_likelihood_alone():
    """Behind its end a sequence may hold anything; a scale that anneals training is not part of log p(x)."""
    torch.manual_seed(0)
    dmm, (data, reverse, mask, lengths) = cases()["dmm"]
    filled = torch.where(mask[..., None] > 0, data, 1.0)
    first = log_likelihood(dmm, data, reverse, mask, lengths, num_samples=30)
    second = log_likelihood(dmm, filled, reverse, mask, lengths, num_samples=30)
    assert torch.equal(first.values, second.values)
    torch.manual_seed(5)
    plain = log_weights(dmm, data, reverse, mask, lengths, num_samples=3)
    torch.manual_seed(5)
    assert torch.allclose(plain, log_weights(dmm, data, reverse, mask, lengths, 0.1, num_samples=3))


def test_a_packed_sequence_goes_in_as_the_example_has_it():
    torch.manual_seed(0)
    dmm, (data, reverse, mask, lengths) = cases()["dmm"]
    packed = nn.utils.rnn.pack_padded_sequence(reverse, lengths, batch_first=True)
    torch.manual_seed(5)
    plain = log_weights(dmm, data, reverse, mask, lengths, num_samples=3)
    torch.manual_seed(5)
    found = log_weights(dmm, data, packed, mask, lengths, num_samples=3)
    assert found.shape == plain.shape and found.isfinite().all()
    assert torch.allclose(plain[:, :2], found[:, :2], atol=1e-5)  # of full length, so that nothing is padded


def test_the_exact_likelihood_of_a_linear_markov_model():
    """One latent a step, linear and Gaussian, with the lengths in masks: log p(x) in closed form."""
    a, noise, steps = 0.8, 0.5, 3
    lengths = torch.tensor([3, 3, 2, 1])
    mask = torch.arange(steps) < lengths[:, None]
    x = torch.randn(4, steps)

    def model(x, mask):
        z = 0.0
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(steps)):
                with poutine.mask(mask=mask[:, t]):
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(a * z, 1.0))
                    pyro.sample(f"obs_x_{t + 1}", dist.Normal(z, noise), obs=x[:, t])

    def guide(x, mask):
        with pyro.plate("z_minibatch", len(x)):
            for t in range(steps):
                with poutine.mask(mask=mask[:, t]):
                    pyro.sample(f"z_{t + 1}", dist.Normal(0.8 * x[:, t], 0.7))

    transition = torch.tensor([[a ** (i - j) if i >= j else 0.0 for j in range(steps)] for i in range(steps)])
    covariance = transition @ transition.T + noise**2 * torch.eye(steps)
    exact = torch.stack(
        [
            dist.MultivariateNormal(torch.zeros(n), covariance[:n, :n]).log_prob(x[i, :n])
            for i, n in enumerate(lengths.tolist())
        ]
    )
    estimate = log_likelihood(Custom(model, guide), x, mask, num_samples=5000)
    assert (estimate.values - exact).abs().max() < 0.05 and estimate.reliable.all()


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


def test_a_hidden_markov_model_is_summed_out_as_by_the_forward_algorithm():
    transition, locs = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([-1.0, 1.0])

    def model(x):
        with pyro.plate("sequences", len(x), dim=-1):
            state = 0
            for t in pyro.markov(range(x.shape[1])):
                state = pyro.sample(f"s_{t}", dist.Categorical(transition[state]), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Normal(locs[state], 1.0), obs=x[:, t])

    x = torch.randn(5, 6)
    forward = transition[0].log() + dist.Normal(locs, 1.0).log_prob(x[:, :1])
    for t in range(1, 6):
        forward = (forward[..., None] + transition.log()).logsumexp(1) + dist.Normal(locs, 1.0).log_prob(
            x[:, t : t + 1]
        )
    estimate = log_likelihood(Custom(model, lambda x: None), x, num_samples=1)
    assert torch.allclose(estimate.values.float(), forward.logsumexp(1), atol=1e-5)


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
