"""The convolutional hierarchy of the VampPrior paper at its sizes: 28 × 28 pixels, 40 + 40 latents, 500 components."""

import pytest
import torch

from ppgen import decoders, nn, posteriors, priors
from ppgen.inference import dreg, elbo, latent_report, log_likelihood, reconstruct, sample
from ppgen.inference.training.svi import SVI
from ppgen.models import HierarchicalVAE

IMAGE, D, WIDTH = (1, 28, 28), 40, 300


def hierarchy(net1, net2, net_x, pseudo_inputs):
    q1, q2 = posteriors.DiagNormal(net1), posteriors.DiagNormal(net2)
    prior = priors.StandardNormal(D) if pseudo_inputs is None else priors.VampPrior(q2, pseudo_inputs)
    p1 = priors.DiagNormal(D, nn.GatedMLP(D, WIDTH, WIDTH, 2 * D))
    return HierarchicalVAE(prior, [p1], decoders.Bernoulli(net_x), [q1, q2])


def of_the_library(pseudo_inputs):
    net1 = nn.ConvNet(IMAGE, 2 * D, hidden=(WIDTH,), gated=True, context_dim=D)
    net2 = nn.ConvNet(IMAGE, 2 * D, hidden=(), gated=True)
    net_x = nn.DeconvNet(D, IMAGE, hidden=(WIDTH,), gated=True, context_dim=D)
    return hierarchy(net1, net2, net_x, pseudo_inputs)


def gated(*layers):
    """(channels in, channels out, kernel size, stride), ..."""
    return torch.nn.Sequential(
        *(nn.GatedConv2d(torch.nn.Conv2d, a, b, k, stride=s, padding=k // 2) for a, b, k, s in layers)
    )


class PublishedEncoder(torch.nn.Module):
    """A convolutional column for the image; a vector joins behind it."""

    def __init__(self, kernels, context_dim):
        super().__init__()
        first, second, third, fourth = kernels
        self.column = gated(
            (1, 32, first, 1), (32, 32, second, 2), (32, 64, third, 1), (64, 64, fourth, 2), (64, 6, 3, 1)
        )
        width = 6 * 7 * 7
        self.head = nn.GatedBranches([width, context_dim], width, WIDTH, 2 * D) if context_dim else nn.MLP(width, 2 * D)
        self.in_shape = IMAGE

    def forward(self, x, *above):
        return self.head(nn.batched(self.column, x, 3).flatten(-3), *above)


class PublishedDecoder(torch.nn.Module):
    """Two vectors to an image of numbers, which four gated convolutions refine."""

    def __init__(self):
        super().__init__()
        self.dense = nn.GatedBranches([D, D], WIDTH, IMAGE)
        self.column = torch.nn.Sequential(
            gated((1, 64, 3, 1), (64, 64, 3, 1), (64, 64, 3, 1), (64, 64, 3, 1)), torch.nn.Conv2d(64, 1, 1)
        )
        self.out_shape = IMAGE

    def forward(self, z1, z2):
        return nn.batched(self.column, self.dense(z1, z2), 3)


def as_published(pseudo_inputs):
    net1, net2 = PublishedEncoder((3, 3, 3, 3), D), PublishedEncoder((7, 3, 5, 3), 0)
    return hierarchy(net1, net2, PublishedDecoder(), pseudo_inputs)


def images(number):
    return torch.bernoulli(torch.full((number, *IMAGE), 0.2))


@pytest.mark.parametrize(
    ("build", "batch_size", "num_pseudo_inputs"),
    [
        pytest.param(of_the_library, 100, 500, marks=pytest.mark.slow, id="library, VampPrior"),
        pytest.param(of_the_library, 100, 50, id="library, small VampPrior"),
        pytest.param(of_the_library, 20, 0, id="library, standard prior"),
        pytest.param(as_published, 5, 10, id="published networks"),
    ],
)
def test_a_step_at_the_papers_sizes(build, batch_size, num_pseudo_inputs):
    pair = build(images(num_pseudo_inputs) if num_pseudo_inputs else None)
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    loss = SVI(pair, elbo()).step(images(batch_size))
    assert 0 < float(loss) < float("inf")
    assert not [n for n, p in pair.named_parameters() if torch.equal(p, before[n]) or not p.isfinite().all()]


@pytest.mark.parametrize("build", [of_the_library, as_published])
def test_what_a_hierarchy_of_this_size_is_used_for(build):
    pair, x = build(images(5)), images(3)
    assert sample(pair, 3, mean=True).shape == reconstruct(pair, x).shape == (3, *IMAGE)
    assert log_likelihood(pair, x, num_samples=4).values.isfinite().all()
    assert set(latent_report(pair, x, num_samples=2).kl) == {"z1", "z2"}
    dreg(3)(pair.model, pair.guide, x).backward()  # particles in front of the data, through every convolution
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pair.parameters())
