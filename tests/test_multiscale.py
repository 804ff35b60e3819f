"""Images whose every second pixel is drawn first: probabilities, training, draws."""

import functools
import itertools
import math
import re

import pytest
import torch

from ppgen import decoders, models, nn
from ppgen.inference import fit, log_likelihood, sample


def multi_scale(shape, levels=3, **options):
    """Two scales under the large image's, of mixtures of logistics and of categories."""

    def one(shape, context_shapes, logistics=False):
        if logistics:
            out = decoders.LogisticMixture.outputs_shape(shape, num_components=2)
            net = network(shape, out, levels=levels, channels_in_turn=False, context_shapes=context_shapes)
            output = decoders.LogisticMixture(net, shape[0], num_components=2, num_levels=levels)
        else:
            out = decoders.Categorical.outputs_shape(shape, levels)
            output = decoders.Categorical(network(shape, out, levels=levels, context_shapes=context_shapes), levels)
        for parameter in output.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        return decoders.Autoregressive(output)

    network = functools.partial(nn.GatedPixelCNN, channels=4, num_layers=3, first_kernel_size=5)
    half = (shape[0], -(-shape[1] // 2), -(-shape[2] // 2))
    quarter = (shape[0], -(-half[1] // 2), -(-half[2] // 2))
    contexts = [[2], [2, quarter], [2, half]]
    smallest = decoders.MultiScale(one(quarter, contexts[0]), one(half, contexts[1]))
    return decoders.MultiScale(smallest, one(shape, contexts[2], **options))


@pytest.mark.parametrize("logistics", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1, 3)])
def test_probabilities_on_several_scales_sum_to_one(shape, logistics):
    everything = torch.tensor(list(itertools.product(range(3), repeat=math.prod(shape)))).float().reshape(-1, *shape)
    log_prob = multi_scale(shape, logistics=logistics)(torch.tensor([0.5, 1.0])).log_prob(everything)
    assert log_prob.exp().std() > 1e-5
    torch.testing.assert_close(log_prob.double().logsumexp(0).exp().item(), 1.0, atol=1e-4, rtol=0)


def test_images_on_several_scales_are_trained_and_drawn():
    y = torch.eye(2).repeat(5, 1)
    x = (2 * y[:, :1, None, None]).expand(-1, 1, 5, 6)
    pair = models.ExplicitDensity(multi_scale((1, 5, 6)))
    fit(pair, (x, y), epochs=80, batch_size=10, seed=0, progress=False, optimizer=lambda p: torch.optim.Adam(p, 2e-2))
    assert log_likelihood(pair, x, y, num_samples=1).mean > -3  # 30 log 3 = 33 at the start
    drawn = sample(pair, 20, torch.eye(2).repeat(10, 1), seed=0)
    assert drawn.shape == (20, 1, 5, 6) and drawn[::2].mean() > 1.8 and drawn[1::2].mean() < 0.2


def test_small_pixels_stay_as_they_were_drawn_and_columns_are_the_networks():
    d = multi_scale((2, 5, 6)).double()(torch.randn(4, 2).double())
    torch.manual_seed(1)
    x = d.sample()
    torch.manual_seed(1)
    assert torch.equal(x, d.sample(incremental=False))
    torch.manual_seed(1)
    assert torch.equal(x[..., ::2, ::2], d.small.sample())
    assert d.expand((3, 4)).sample().shape == (3, 4, 2, 5, 6) and bool(d.support.check(x).all())


@pytest.mark.parametrize(
    ("half", "fact"),
    [
        ((1, 2, 3), "context_shapes that end in (1, 2, 3), but they are []"),
        ((1, 2, 2), "small must be of images (1, 2, 3), but is of (1, 2, 2)"),
    ],
)
def test_scales_that_do_not_fit_are_refused(half, fact):
    small, large = (decoders.Autoregressive(decoders.Bernoulli(nn.PixelCNN(s, s))) for s in (half, (1, 4, 5)))
    with pytest.raises(ValueError, match=re.escape(fact)):
        decoders.MultiScale(small, large)
