"""Two Pyro functions of your own, trained and evaluated, beside the exact answer.

Each datum is a noisy straight line over time with a random slope and a random offset. What such a model says of its
data is known in closed form (x is Gaussian), so the importance-sampled log-likelihood can be held against it.
"""

import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as nn_functional
from matplotlib.figure import Figure

from ppgen import nn
from ppgen.inference import encode, fit, log_likelihood
from ppgen.models import Custom

TIME = torch.linspace(0, 1, 10)
NOISE = 0.3
BASIS = torch.stack([torch.ones_like(TIME), TIME])  # z · BASIS is the line

encoder = nn.MLP(10, 32, 5)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))  # offset and slope
        pyro.sample("x", dist.Normal(z @ BASIS, NOISE).to_event(1), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        # Offset and slope are correlated given the data: a guide that left this out would be a poor proposal.
        loc, log_diagonal, below = encoder(x).split((2, 2, 1), -1)
        factor = torch.diag_embed(log_diagonal.exp()) + nn_functional.pad(below.unsqueeze(-1), (0, 1, 1, 0))
        pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))


def main(quick: bool, out: Path) -> None:
    torch.manual_seed(0)
    covariance = BASIS.T @ BASIS + NOISE**2 * torch.eye(10)
    truth = dist.MultivariateNormal(torch.zeros(10), covariance)
    train, test = truth.sample((200 if quick else 5000,)), truth.sample((100,))
    pair = Custom(model, guide)
    fit(pair, train, epochs=2 if quick else 40, seed=0, progress=False)

    estimate = log_likelihood(pair, test, num_samples=500 if quick else 5000)
    exact = truth.log_prob(test)
    print(estimate)
    print(f"exact {exact.mean():.2f} nats; largest error of a reliable estimate "
          f"{(estimate.values - exact)[estimate.reliable].abs().max():.3f}")  # fmt: skip

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for i, z in enumerate(encode(pair, test[:4])):
        axes.plot(TIME, test[i], "o", color=f"C{i}")
        axes.plot(TIME, z @ BASIS, color=f"C{i}")
    axes.set(xlabel="time", ylabel="x", title="data, and the line that the guide infers")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "your_own_pair.png"))
