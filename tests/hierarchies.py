"""Small hierarchies, plain ones and ladders, and binary data for them."""

import torch

from ppgen import decoders, nn, posteriors, priors
from ppgen.models import HierarchicalVAE, LadderVAE

X = 9  # coordinates of the data


def binary(n=12, shape=(X,)):
    return torch.bernoulli(torch.full((n, *shape), 0.4))


def diagonal(*widths, **options):
    return posteriors.DiagNormal(nn.GatedMLP(*widths, **options))


def dense(vamp=False, num_layers=3, y=0, markov=False):
    """Layers of 4, 3 and 2 coordinates; every part sees all above it, and a context of y numbers."""
    widths = [4, 3, 2][:num_layers]
    above = [sum(widths[i + 1 :][: 1 if markov else None]) + y for i in range(num_layers)]
    qs = [diagonal(X, 8, 2 * w, context_dim=c) for w, c in zip(widths, above, strict=True)]
    ps = [priors.DiagNormal(w, nn.GatedMLP(c, 8, 2 * w)) for w, c in zip(widths[:-1], above, strict=False)]
    decoder = decoders.Bernoulli(nn.MLP((widths[0] if markov else sum(widths)) + y, 8, X))
    prior = priors.StandardNormal(widths[-1])
    if vamp:
        prior = priors.VampPrior(qs[-1], torch.rand(5, X), conditional=y > 0)
    return HierarchicalVAE(prior, ps, decoder, qs, markov=markov)


def ladder(vamp=False, num_layers=3, y=0, markov=False):
    model = dense(num_layers=num_layers, y=y, markov=markov)
    widths = [q.latent_dim for q in model.posteriors]
    encoders = [nn.GatedMLP(X, 8, 6, context_dim=y), *(nn.GatedMLP(6, 8, 6) for _ in widths[1:])]
    qs = [posteriors.DiagNormal(nn.MLP(6, 2 * w)) for w in widths]
    prior = model.prior
    if vamp:
        encoder = torch.nn.Sequential(*encoders, qs[-1].net)
        prior = priors.VampPrior(posteriors.DiagNormal(encoder), torch.rand(5, X))
    return LadderVAE(prior, model.conditionals, model.decoder, encoders, qs, markov=markov)
