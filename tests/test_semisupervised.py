"""Semi-supervised VAEs against Kingma's equations written out, and against sums and integrals over their latents."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch.nn.functional import one_hot

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import SVI, classify, decode, elbo, encode, fit, iwae, log_likelihood, reconstruct, sample
from ppgen.inference import semi_supervised as objective
from ppgen.models import Custom

C, D, LATENT = 3, 6, 2
X = torch.bernoulli(torch.full((12, D), 0.4), generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, -1, 2, 1, -1, -1, 0, 2, -1, 1, 1, -1])
CLASSES = torch.eye(C)[:, None].expand(C, len(X), C)  # every class for every datum


def m2(latent_dim=LATENT, **options):
    return models.SemiSupervisedVAE(
        priors.DiagNormal(latent_dim, nn.MLP(C, 2 * latent_dim)),
        decoders.Bernoulli(nn.MLP(latent_dim + C, 8, D)),
        posteriors.DiagNormal(nn.MLP(D + C, 8, 2 * latent_dim)),
        classifier=nn.MLP(D, 8, C),
        num_classes=C,
        **options,
    )


def stacked():
    m1 = models.VAE(
        priors.StandardNormal(4), decoders.Bernoulli(nn.MLP(4, 8, D)), posteriors.DiagNormal(nn.MLP(D, 8, 8))
    )
    top = models.SemiSupervisedVAE(
        priors.StandardNormal(LATENT),
        decoders.Normal(nn.MLP(LATENT + C, 8, 8)),
        posteriors.DiagNormal(nn.MLP(4 + C, 8, 2 * LATENT)),
        classifier=nn.MLP(4, 8, C),
        num_classes=C,
    )
    return models.StackedSemiSupervisedVAE(m1, top)


PAIRS = {"m2": m2, "m1+m2": stacked}


def bound_by_hand(pair, x, y):
    """Σ L(x, y) + Σ U(x) over the rows with a label and without, one draw of z for every class and datum."""
    q = pair.posterior(x, CLASSES)
    z = q.rsample()
    labelled = pair.class_logits[:, None] + pair.prior(CLASSES).log_prob(z) - q.log_prob(z)
    labelled = labelled + pair.decoder(z, CLASSES).log_prob(x)  # L(x, y) of every class: (C, N)
    log_q = pair.classifier(x).log_softmax(-1).T
    unlabelled = (log_q.exp() * (labelled - log_q)).sum(0)
    rows = range(len(y))
    return sum(labelled[y[n], n] if y[n] >= 0 else unlabelled[n] for n in rows)


def gradients(pair, loss):
    pair.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in pair.named_parameters() if p.grad is not None}


def agree(pair, loss, by_hand):
    assert torch.allclose(loss, by_hand, atol=1e-5)
    found, expected = gradients(pair, loss), gradients(pair, by_hand)
    assert found.keys() >= expected.keys() and len(expected) > 5
    for name, gradient in found.items():  # zero where the equations leave a parameter out (q(y | x) of a label)
        assert torch.allclose(gradient, expected.get(name, torch.zeros(())), atol=1e-5), name


LABELS = pytest.mark.parametrize(
    "labels", [Y, Y.clamp(min=0), torch.full_like(Y, -1)], ids=["mixed", "all given", "none given"]
)


@LABELS
def test_the_elbo_and_its_gradient_are_kingmas(labels):
    pair, loss = m2(class_probs=[0.5, 0.3, 0.2]), elbo()
    loss(pair.model, pair.guide, X, labels)  # the first call measures the pair
    torch.manual_seed(4)
    value = loss(pair.model, pair.guide, X, labels)
    torch.manual_seed(4)
    agree(pair, value, -bound_by_hand(pair, X, labels) / len(X))


@LABELS
def test_the_classification_loss_is_of_the_labelled_rows(labels):
    pair, alpha = m2(), 0.7
    values = []
    for weight in (alpha, 0.0):
        torch.manual_seed(4)
        values.append(objective(weight, elbo(num_particles=2))(pair.model, pair.guide, X, labels))
    known = labels >= 0
    by_hand = torch.nn.functional.cross_entropy(pair.classifier(X[known]), labels[known], reduction="sum") / len(X)
    assert torch.allclose(values[0] - values[1], alpha * by_hand, atol=1e-5)


def test_only_the_classification_loss_teaches_the_classifier_of_a_labelled_batch():
    pair, labels = m2(), Y.clamp(min=0)
    for loss, teaches in ((elbo(), False), (objective(1.0), True)):
        found = gradients(pair, loss(pair.model, pair.guide, X, labels))
        assert any(bool(found[n].any()) for n in found if n.startswith("classifier")) is teaches
        assert all(g.isfinite().all() for g in found.values())


def test_loss_of_the_stacked_pair_is_the_vaes_and_an_m2_of_its_latent():
    pair = stacked()
    loss = elbo()
    loss(pair.model, pair.guide, X, Y)
    torch.manual_seed(4)
    value = loss(pair.model, pair.guide, X, Y)
    torch.manual_seed(4)
    q = pair.m1.posterior(X)
    z1 = q.rsample()
    of_vae = (pair.m1.decoder(z1).log_prob(X) - q.log_prob(z1)).sum()
    agree(pair, value, -(of_vae + bound_by_hand(pair.m2, z1, Y)) / len(X))


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_every_objective_trains_every_parameter(make):
    for loss in (None, objective(2.0), objective(2.0, elbo(beta=0.5, num_particles=3)), objective(2.0, iwae(4))):
        pair = make()
        before = {name: p.detach().clone() for name, p in pair.named_parameters() if not name.startswith("m1.prior")}
        fit(pair, (X, Y), loss=loss, epochs=2, batch_size=6, seed=0, progress=False)
        after = dict(pair.named_parameters())
        assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_pyros_own_svi_trains_a_pair(global_param_store):
    pair = m2()
    before = [p.detach().clone() for p in pair.parameters()]
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    svi.step(X, Y)
    assert not any(torch.equal(p, q) for p, q in zip(pair.parameters(), before, strict=True))


def test_evaluation_without_gradients_is_the_same_loss():
    pair = m2()
    step = SVI(pair, objective(1.0))
    step.loss(pair.model, pair.guide, X, Y)
    value = step.evaluate(X, Y, seed=7)
    torch.manual_seed(7)
    assert torch.allclose(value, step.loss(pair.model, pair.guide, X, Y), atol=1e-6)


GRID = torch.linspace(-9, 9, 2001)


class Wide(torch.nn.Module):
    """A proposal wider than any posterior here, whose importance weights are bounded."""

    def forward(self, x, y):
        return dist.Normal(torch.zeros(*y.shape[:-1], 1), 3.0).to_event(1)


def joint_by_quadrature(pair, x, seen=None):
    """The logarithm of p(x, y) for every class, (N, C), by the trapezoid rule over a one-dimensional z."""
    y = torch.eye(C)
    prior = pair.prior(y).log_prob(GRID[:, None, None])  # (G, C)
    logits = pair.decoder.net(GRID[:, None, None].expand(-1, C, 1), y.expand(len(GRID), C, C))
    scores = dist.Bernoulli(logits=logits[:, :, None]).log_prob(x)  # (G, C, N, D)
    scores = (scores if seen is None else scores * seen).sum(-1)
    density = (prior[..., None] + scores).double()
    integral = density.logsumexp(0) + math.log(float(GRID[1] - GRID[0]))
    return (pair.class_logits[:, None] + integral).T


def test_log_likelihood_is_of_x_and_y_where_y_is_given_and_of_x_where_it_is_not():
    pair = m2(latent_dim=1, class_probs=[0.5, 0.3, 0.2])
    fit(pair, (X, Y), loss=objective(1.0), epochs=30, seed=0, progress=False)
    pair.posterior = Wide()
    exact = joint_by_quadrature(pair, X).detach()
    estimate = log_likelihood(pair, X, Y, num_samples=40_000).values
    expected = torch.where(Y >= 0, exact.gather(1, Y.clamp(min=0)[:, None])[:, 0], exact.logsumexp(1))
    assert torch.allclose(estimate, expected, atol=0.03)
    assert torch.allclose(log_likelihood(pair, X, num_samples=40_000).values, exact.logsumexp(1), atol=0.03)
    assert torch.allclose(classify(pair, X, num_samples=10_000), exact.softmax(1), atol=0.02)
    assert torch.allclose(classify(pair, X, batch_size=5), pair.classifier(X).softmax(1), atol=1e-6)


def test_missing_entries_are_integrated_out():
    pair = m2(latent_dim=1)
    pair.posterior = Wide()
    seen = torch.rand(X.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    exact = joint_by_quadrature(pair, X, seen.float()).detach()
    expected = torch.where(Y >= 0, exact.gather(1, Y.clamp(min=0)[:, None])[:, 0], exact.logsumexp(1))
    assert torch.allclose(log_likelihood(pair, X, Y, mask=seen, num_samples=40_000).values, expected, atol=0.03)


def test_the_stacked_pair_estimates_the_same_with_and_without_labels():
    pair = stacked()
    joint = [log_likelihood(pair, X, torch.full_like(Y, c), num_samples=4000).values for c in range(C)]
    marginal = log_likelihood(pair, X, num_samples=8000)
    assert torch.allclose(torch.stack(joint).logsumexp(0), marginal.values, atol=0.1)


class Reveals(torch.nn.Module):
    """The class as the observation, whatever z is."""

    out_shape = (C,)

    def forward(self, z, y):
        return (2 * y - 1) * 40 + 0 * z.sum(-1, keepdim=True)


def test_samples_are_of_the_classes_that_are_given_and_classes_are_drawn_where_not():
    pair = models.SemiSupervisedVAE(
        priors.StandardNormal(LATENT),
        decoders.Bernoulli(Reveals()),
        posteriors.DiagNormal(nn.MLP(2 * C, 2 * LATENT)),
        nn.MLP(C, C),
        C,
        class_probs=[0.7, 0.2, 0.1],
    )
    y = torch.arange(C).repeat(4)
    assert torch.equal(sample(pair, len(y), y, seed=0), one_hot(y, C).float())
    half = torch.where(torch.arange(len(y)) % 2 == 0, y, -1)
    drawn = sample(pair, len(y), half, seed=0).argmax(-1)
    assert torch.equal(drawn[half >= 0], y[half >= 0]) and not torch.equal(drawn, y)
    shares = sample(pair, 4000, seed=0).mean(0)
    assert torch.allclose(shares, torch.tensor([0.7, 0.2, 0.1]), atol=0.03)
    assert torch.equal(decode(pair, {"z": torch.zeros(C, LATENT)}, torch.arange(C)).round(), torch.eye(C))


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_encoding_keeps_labels_and_gives_probabilities_elsewhere(make):
    pair = make()
    y = encode(pair, X, Y)["y"]
    assert torch.equal(y[Y >= 0], one_hot(Y[Y >= 0], C).float())
    assert torch.allclose(y[Y < 0], classify(pair, X)[Y < 0], atol=1e-6)
    assert reconstruct(pair, X, Y).shape == X.shape


def test_a_few_labels_name_the_clusters_that_unlabelled_data_show():
    """Two patterns with a pixel in eight flipped, one label of each."""
    torch.manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.bernoulli(torch.where(y[:, None] == 1, 0.875, 0.125).expand(400, 16) * torch.ones(400, 16))
    x[:, 8:] = 1 - x[:, 8:]
    labels = torch.full_like(y, -1)
    labels[:2] = y[:2]
    pair = models.SemiSupervisedVAE(
        priors.StandardNormal(1),
        decoders.Bernoulli(nn.MLP(1 + 2, 16)),
        posteriors.DiagNormal(nn.MLP(16 + 2, 2)),
        nn.MLP(16, 16, 2),
        2,
    )
    rows = torch.cat([torch.arange(400), torch.arange(2).repeat(20)])
    fit(
        pair,
        (x[rows], labels[rows]),
        loss=objective(5.0),
        epochs=15,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
        seed=0,
        progress=False,
    )
    assert (classify(pair, x).argmax(-1) == y).double().mean() > 0.97


def test_images_and_a_conditional_as_the_classifier():
    pair = models.SemiSupervisedVAE(
        priors.StandardNormal(LATENT),
        decoders.Bernoulli(nn.DeconvNet(LATENT, (1, 8, 8), context_dim=C)),
        posteriors.DiagNormal(nn.ConvNet((1, 8, 8), 2 * LATENT, context_dim=C)),
        posteriors.Categorical(nn.ConvNet((1, 8, 8), C), C),
        C,
    )
    x = torch.bernoulli(torch.full((12, 1, 8, 8), 0.5))
    loss = objective(1.0)(pair.model, pair.guide, x, Y)
    assert all(g.isfinite().all() for g in gradients(pair, loss).values())
    assert classify(pair, x).shape == (12, C) and sample(pair, C, torch.arange(C)).shape == (C, 1, 8, 8)


def test_bad_input_is_named():
    pair = m2()
    for labels, fact in (
        (torch.tensor([0, 3]), r"runs from 0 to 3.*0, \.\.\., 2"),
        (torch.tensor([-2, 0]), r"runs from -2 to 0"),
        (torch.eye(3)[:2], r"shape \(2, 3\) of torch\.float32.*argmax"),
        (torch.tensor([0.0, 1.0]), r"torch\.float32"),
    ):
        with pytest.raises(ValueError, match=fact):
            log_likelihood(pair, X[:2], labels, num_samples=2)
    parts = dict(prior=pair.prior, decoder=pair.decoder, posterior=pair.posterior, classifier=pair.classifier)
    with pytest.raises(TypeError, match=r"classifier must be a network, got function"):
        models.SemiSupervisedVAE(**parts | {"classifier": lambda x: x}, num_classes=C)
    with pytest.raises(ValueError, match=r"gives 3 logits.*num_classes=4"):
        models.SemiSupervisedVAE(**parts, num_classes=4).guide(X, Y)
    with pytest.raises(ValueError, match=r"class_probs must be 3 positive numbers.*\[1\.0, 0\.0, 1\.0\]"):
        m2(class_probs=[1.0, 0.0, 1.0])
    with pytest.raises(TypeError, match=r"a VAE of the data.*SemiSupervisedVAE and SemiSupervisedVAE"):
        models.StackedSemiSupervisedVAE(pair, pair)
    with pytest.raises(ValueError, match=r"alpha .* not negative, got -1"):
        objective(-1)
    plain = models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, D)), posteriors.DiagNormal(nn.MLP(D + C, 4))
    )
    with pytest.raises(ValueError, match=r"no class at a site 'y'"):
        objective(1.0)(plain.model, plain.guide, X, one_hot(Y.clamp(min=0), C).float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_labels_may_be_small_integers(dtype):
    """To which −1 is 255, or a bound of classes is."""
    labels = Y.clamp(min=0)
    pair, values = m2(), []
    for y in (labels, labels.to(dtype)):
        torch.manual_seed(4)
        values.append(objective(0.7)(pair.model, pair.guide, X, y))
    assert torch.equal(*values)
    fit(pair, (X, labels.to(dtype)), loss=objective(0.7), epochs=1, progress=False)
    assert sample(pair, 3, torch.tensor([0, 1, 2]).to(dtype)).shape == (3, D)


def test_a_class_of_one_logit_is_refused():
    """Whose softmax would run over the data."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x))

    with pytest.raises(ValueError, match=r"categorical distribution \(of two classes, too\)"):
        classify(Custom(model, guide), torch.randn(5))
