"""VQ-VAEs of several levels: their bound by hand, codes that are seen from below, priors level by level."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from vqvaes import GRID, IMAGE, K, _adam, catch, images, levels, pixelcnn, small

from ppgen import decoders, models, nn
from ppgen.inference import decode, elbo, encode, fit, log_likelihood, reconstruct, sample


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
