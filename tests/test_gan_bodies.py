"""DCGAN's networks and spectral norms: images of any size, labels that meet the image, slopes that stay bounded."""

import re

import pytest
import torch
from torch import nn as tnn

from ppgen import models, nn, priors
from ppgen.inference import Adversarial, adversarial, train


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 28, 20), (2, 7, 5), (1, 8, 8)])
@pytest.mark.parametrize("channels", [(8,), (8, 4), (8, 6, 4)])
def test_dcgan_s_bodies_fit_images_of_any_size(shape, channels):
    generator = nn.DCGANGenerator(5, shape, channels=channels, context_dim=3)
    discriminator = nn.DCGANDiscriminator(shape, 4, channels=channels[::-1], context_dim=3)
    z, y = torch.randn(2, 6, 5), torch.randn(6, 3)
    x = generator(z, y)
    assert x.shape == (2, 6, *shape) and x.abs().max() <= 1
    assert discriminator(x, y).shape == (2, 6, 4)
    features = discriminator.features(x, y)
    torch.testing.assert_close(discriminator.output(features), discriminator(x, y))
    flat = generator.eval()(z.reshape(12, 5), y.repeat(2, 1))
    torch.testing.assert_close(flat.reshape(2, 6, *shape), generator(z, y))


def test_dcgan_s_weights_start_small_and_norms_swap():
    generator = nn.DCGANGenerator(100, (1, 28, 28))
    weights = torch.cat([m.weight.flatten() for m in generator.modules() if isinstance(m, tnn.ConvTranspose2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    critic = nn.DCGANDiscriminator((1, 28, 28), norm=lambda c: tnn.GroupNorm(1, c))
    assert not any(isinstance(m, tnn.BatchNorm2d) for m in critic.modules())
    x = torch.randn(4, 1, 28, 28)
    torch.testing.assert_close(critic(x)[:2], critic(x[:2]))  # an image's score is its own
    assert not any(
        isinstance(m, tnn.BatchNorm2d | tnn.GroupNorm) for m in nn.DCGANDiscriminator((1, 8, 8), norm=None).modules()
    )


def test_dcgan_s_bodies_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="out_shape must be an image"):
        nn.DCGANGenerator(5, 784)
    for wrong in (0, -1, (1, 0), ()):
        with pytest.raises(ValueError, match=f"out_shape is {re.escape(repr(wrong))}, but an event shape"):
            nn.DCGANDiscriminator((1, 8, 8), wrong)
    with pytest.raises(ValueError, match="channels must state at least one"):
        nn.DCGANDiscriminator((1, 28, 28), channels=())
    with pytest.raises(ValueError, match=r"DCGANGenerator.*takes 8 numbers"):
        nn.DCGANGenerator(5, (1, 8, 8), context_dim=3)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"DCGANDiscriminator's context takes 3 numbers"):
        nn.DCGANDiscriminator((1, 8, 8), context_dim=3)(torch.zeros(2, 1, 8, 8), torch.zeros(2, 4))


def test_a_label_meets_the_image():
    """The score's dependence on the label is another for another image: it is not only added."""
    critic = nn.DCGANDiscriminator((1, 8, 8), channels=(8,), context_dim=2)
    images, labels = torch.randn(2, 1, 1, 8, 8), torch.eye(2)
    score = 100 * critic(images, labels)[..., 0]
    assert (score[0, 0] - score[0, 1] - score[1, 0] + score[1, 1]).abs() > 1e-3


def test_spectral_norms_stay_at_one_through_training():
    critic = nn.spectrally_normalized(nn.MLP(2, 16, 16, 1))
    gan = models.GAN(priors.StandardNormal(2), nn.MLP(2, 8, 2), critic)
    train(Adversarial(gan, adversarial.hinge()), torch.randn(1000, 2), epochs=10, batch_size=50, seed=0)
    layers = [m for m in critic.eval().modules() if isinstance(m, tnn.Linear)]
    norms = torch.stack([torch.linalg.matrix_norm(m.weight, 2) for m in layers])
    assert len(norms) == 3 and (norms - 1).abs().max() < 0.2  # the power method runs a little behind
    x = torch.randn(100, 2)
    slopes = adversarial.slopes(lambda x: critic(x)[:, 0], (x,), (x,))
    assert slopes.max() <= norms.prod() + 1e-4
    with pytest.raises(ValueError, match="no dense or convolutional layer"):
        nn.spectrally_normalized(tnn.ReLU())
