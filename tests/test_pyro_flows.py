"""Pyro's flows as the density of the data: they keep their last result, and it is of other parameters at the next."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from ppgen.inference import SVI, elbo, fit, iwae, log_likelihood, log_weights
from ppgen.models import Custom

FLOWS = {
    "spline coupling": lambda: transforms.spline_coupling(2, count_bins=4, hidden_dims=[8]),
    "affine coupling": lambda: transforms.affine_coupling(2, hidden_dims=[8]),
    "affine autoregressive": lambda: transforms.affine_autoregressive(2, hidden_dims=[8]),
    "spline": lambda: transforms.Spline(2, count_bins=4),
}
LOSSES = {  # and whether there is a latent beside it that is summed out
    "elbo": (elbo, False),
    "elbo, enumerated": (elbo, True),
    "iwae": (lambda: iwae(3), False),
    "iwae, enumerated": (lambda: iwae(3), True),
    "Trace_ELBO": (Trace_ELBO, False),
    "TraceEnum_ELBO": (TraceEnum_ELBO, True),
}
K = torch.tensor([0.3, 0.7])


def pair_of(flow, enumerated=False):
    """A flow of the data, alone or beside a latent that has no part in them."""

    def model(x):
        with pyro.plate("data", len(x)):
            if enumerated:
                pyro.sample("k", dist.Categorical(K), infer={"enumerate": "parallel"})
            pyro.sample("x", density(flow), obs=x)

    return Custom(model, lambda x: None, flow=flow)


def density(flow):
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    shift = transforms.AffineTransform(0.1, 2.0, event_dim=1)
    return dist.TransformedDistribution(base, [shift, flow])


def by_hand(flow, x):
    return -density(flow).log_prob(x.clone()).mean()


def gradients(loss, flow):
    return torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("flow", FLOWS)
def test_a_flow_is_trained_and_scored_as_it_is_now(flow, loss):
    torch.manual_seed(0)
    (loss, enumerated), flow = LOSSES[loss], FLOWS[flow]()
    x = 0.5 * torch.randn(20, 2) + 0.2
    pair = pair_of(flow, enumerated)
    step = SVI(pair, loss(), optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))
    objective = step.loss
    for _ in range(3):
        ours, expected = objective(pair.model, pair.guide, x), by_hand(flow, x)
        assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
        for a, b in zip(gradients(ours, flow), gradients(expected, flow), strict=True):
            assert torch.allclose(a, b, atol=1e-4)
        assert -log_weights(pair, x, num_samples=2).mean().item() == pytest.approx(expected.item(), abs=1e-5)
        before = [p.detach().clone() for p in flow.parameters()]
        assert float(step.step(x)) == pytest.approx(expected.item(), abs=1e-5)  # of the same object each time
        assert any(not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))


def test_a_flow_is_fitted():
    torch.manual_seed(0)
    flow = transforms.spline_coupling(2, count_bins=4, hidden_dims=[8])
    x = 0.5 * torch.randn(100, 2) + 1.0
    pair = pair_of(flow)
    history = fit(pair, x, epochs=20, batch_size=100, progress=False)
    assert history.loss[-1] < history.loss[0] - 0.05
    values = log_likelihood(pair, x, num_samples=1).values.float()
    assert torch.allclose(values, density(flow).log_prob(x.clone()).detach(), atol=1e-4)
