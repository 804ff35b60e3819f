"""The tables of all priors and posteriors, small, where a line more tests a new part everywhere; two small VAEs."""

import torch

from ppgen import decoders, models, nn, posteriors, priors

WIDTH = 3  # of the context that posteriors take


def amortised(kind, shaping=None, **options):
    """A posterior behind a small network; ``shaping`` are the options that decide how many outputs it needs."""

    def make(latent_dim, context_dim=WIDTH):
        shape = shaping or {}
        net = nn.MLP(context_dim, 16, kind.num_outputs(latent_dim, **shape))
        return kind(net, latent_dim, **shape, **options)

    return make


POSTERIORS = {
    "diagonal": amortised(posteriors.DiagNormal),
    "full": amortised(posteriors.FullNormal),
    "householder": amortised(posteriors.Householder, {"num_reflections": 3}),
    "iaf": amortised(posteriors.IAF, {"context_dim": 4}, hidden=(16,)),
    "lowrank": amortised(posteriors.LowRankNormal, {"rank": 2}),
    "mog": amortised(posteriors.MixtureOfGaussians, {"num_components": 3}),
    "planar": amortised(posteriors.Planar, {"num_transforms": 3}),
    "radial": amortised(posteriors.Radial, {"num_transforms": 3}),
    "sylvester": amortised(posteriors.Sylvester, {"num_transforms": 2}),
    "sylvester, householder": amortised(posteriors.Sylvester, {"num_transforms": 2, "num_reflections": 2}),
    "sylvester, orthogonal": amortised(posteriors.Sylvester, {"num_transforms": 2, "num_columns": 1}),
    "spline": amortised(posteriors.Spline, {"context_dim": 4}, hidden=(16,)),
    "spline, autoregressive": amortised(posteriors.Spline, {"context_dim": 4}, hidden=(16,), autoregressive=True),
}


def vamp(latent_dim, **options):
    encoder = amortised(posteriors.DiagNormal)(latent_dim)
    return priors.VampPrior(encoder, torch.rand(5, WIDTH), **options)


PRIORS = {
    "standard": priors.StandardNormal,
    "diagonal": priors.DiagNormal,
    "mog": lambda d: priors.MixtureOfGaussians(4, d),
    "vamp": vamp,
    "vamp, learned weights": lambda d: vamp(d, learn_weights=True),
    "vamp, full covariance": lambda d: priors.VampPrior(amortised(posteriors.FullNormal)(d), num_components=5),
    "vamp, householder": lambda d: priors.VampPrior(POSTERIORS["householder"](d), num_components=5),
    "realnvp": lambda d: priors.Flow.realnvp(d, hidden=(16,)),
    "maf": lambda d: priors.Flow.maf(d, hidden=(16,)),
    "nsf": lambda d: priors.Flow.nsf(d, hidden=(16,)),
    "nsf, coupling": lambda d: priors.Flow.nsf(d, hidden=(16,), coupling=True),
    "autoregressive": lambda d: priors.Autoregressive(d, hidden=(16,)),
}


def vamp_given_y(latent_dim, kind="diagonal"):
    encoder = POSTERIORS[kind](latent_dim, context_dim=2 + WIDTH)
    return priors.VampPrior(encoder, torch.rand(5, 2), conditional=True)


def behind(num_outputs):
    return nn.MLP(WIDTH, 16, num_outputs)


CONDITIONAL_PRIORS = {
    "diagonal": lambda d: priors.DiagNormal(d, behind(2 * d)),
    "mog": lambda d: priors.MixtureOfGaussians(3, d, behind(3 * (2 * d + 1))),
    "vamp": vamp_given_y,
    "vamp, full covariance": lambda d: vamp_given_y(d, "full"),
    "realnvp": lambda d: priors.Flow.realnvp(d, context_dim=WIDTH, hidden=(16,)),
    "nsf": lambda d: priors.Flow.nsf(d, context_dim=WIDTH, hidden=(16,), coupling=True),
    "autoregressive": lambda d: priors.Autoregressive(d, context_dim=WIDTH, hidden=(16,)),
}


class Dropped(torch.nn.Module):
    """An encoder with batch normalisation and dropout, of 16 numbers."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.3),
            torch.nn.Linear(8, 4),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x.float())


def normalised(event_shape=(16,)):
    """A VAE whose steps move buffers and draw masks."""
    return models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 8, event_shape)), posteriors.DiagNormal(Dropped())
    )


def small_vae(decoder=decoders.Bernoulli, outputs_shape=16):
    """A VAE of 16 pixels, the same one every time; its decoder takes so many outputs of the network."""
    torch.manual_seed(0)
    net = nn.MLP(2, 8, outputs_shape)
    return models.VAE(priors.StandardNormal(2), decoder(net), posteriors.DiagNormal(nn.MLP(16, 8, 4)))
