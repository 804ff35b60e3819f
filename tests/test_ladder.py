"""The ladder VAE: precision weighting by hand, the right messages are exact, and what cannot be weighed is refused."""

import pyro.distributions as dist
import pytest
import torch
from hierarchies import binary, ladder

from ppgen import nn, priors
from ppgen.inference import dreg, iwae, latent_report, log_weights
from ppgen.models import LadderVAE
from ppgen.models.ladder import precision_weighted


def test_precision_weighting_is_the_product_of_densities():
    p, q = (dist.Normal(torch.randn(5, 1, 2), torch.rand(5, 1, 2) + 0.1).to_event(1) for _ in range(2))
    z = torch.randn(5, 50, 2)
    ratio = p.log_prob(z) + q.log_prob(z) - precision_weighted(p, q).log_prob(z)
    assert (ratio - ratio[:, :1]).abs().max() < 1e-3  # constant in z, so the same density up to its normalisation
    hand = precision_weighted(
        dist.Normal(torch.tensor([1.0]), 2.0).to_event(1), dist.Normal(torch.tensor([4.0]), 1.0).to_event(1)
    )
    assert hand.mean.item() == pytest.approx((1 / 4 + 4) / (1 / 4 + 1))
    assert hand.variance.item() == pytest.approx(1 / (1 / 4 + 1))
    # A Gaussian that knows nothing changes nothing, from either side and at the ends of the range of scales.
    for sharp, flat in ((1e-4, 2e4), (1.0, 2e4)):
        a, b = (dist.Normal(torch.tensor([m]), s).to_event(1) for m, s in ((0.3, sharp), (0.9, flat)))
        for product in (precision_weighted(a, b), precision_weighted(b, a)):
            assert product.mean.item() == pytest.approx(0.3, rel=1e-5)
            assert product.stddev.item() == pytest.approx(sharp, rel=1e-5)


class Chain(torch.nn.Module):
    """z ↦ N(a z, s²) coordinate by coordinate, and upward x ↦ N(x / a, t²): what x says of z, up to a factor."""

    def __init__(self, factor, scale):
        super().__init__()
        self.factor, self.scale = factor, scale

    def forward(self, z):
        return dist.Normal(self.factor * z, self.scale).to_event(1)


def test_a_ladder_of_the_right_messages_is_exact():
    """In a chain z3 → z2 → z1 → x of independent coordinates the precision-weighted guide is the posterior."""
    factors, scales = torch.tensor([0.8, -1.5, 2.0]).double(), torch.tensor([0.5, 0.7, 1.2]).double()
    variance, upward = torch.zeros(()).double(), []
    for i, scale in enumerate(scales):  # x = (f_1 ... f_l) z_l + noise of this variance
        variance = variance + (factors[:i].prod() * scale).square()
        total = factors[: i + 1].prod()
        upward.append(Chain(1 / total, variance.sqrt() / total.abs()))
    top_variance = 1 / (1 + 1 / upward[-1].scale.square())  # the top's posterior under N(0, I), by hand
    upward[-1] = Chain(upward[-1].factor * top_variance / upward[-1].scale.square(), top_variance.sqrt())
    decoder, *conditionals = [Chain(f, s) for f, s in zip(factors, scales, strict=True)]
    same = [torch.nn.Identity()] * 3
    pair = LadderVAE(priors.StandardNormal(2).double(), conditionals, decoder, same, upward, markov=True)
    x = torch.randn(20, 2).double()
    exact = dist.Normal(0.0, (variance + factors.prod().square()).sqrt()).log_prob(x).sum(-1)
    assert (log_weights(pair, x, num_samples=4) - exact).abs().max() < 1e-9


def test_a_ladder_layer_of_which_the_data_say_nothing_costs_nothing():
    pair, x = ladder(num_layers=2).double(), binary().double()
    head = pair.posteriors[0].net.output
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0] * 4 + [9.0] * 4))
        for parameter in pair.conditionals[0].parameters():
            parameter.mul_(0.1)  # to scales near 1, against which e^9 is wide
    report = latent_report(pair, x)
    assert abs(report.kl["z1"]) < 1e-4 and report.kl["z2"] > 1e-3


def test_dreg_of_a_ladder_has_the_gradient_of_iwae():
    """The conditionals stand in the model and in the guide: both of their gradients count."""
    pair, x = ladder(num_layers=2), binary(5)

    def gradient(loss):
        pair.zero_grad()
        loss(pair.model, pair.guide, x).backward()
        return torch.cat([p.grad.flatten() for p in pair.parameters()])

    ours, reference = (torch.stack([gradient(f(4)) for _ in range(150)]) for f in (dreg, iwae))
    error = ((ours.var(0) + reference.var(0)) / 150).sqrt()
    assert ((ours.mean(0) - reference.mean(0)).abs() < 5 * error + 1e-6).all()


def test_a_ladder_refuses_what_it_cannot_weigh():
    pair = ladder(num_layers=2)
    pair.conditionals[0] = priors.MixtureOfGaussians(2, 4, nn.MLP(3, 2 * 9))
    with pytest.raises(TypeError, match=r"weighs diagonal Gaussians.*gave Mixture.*HierarchicalVAE"):
        pair.guide(binary())
