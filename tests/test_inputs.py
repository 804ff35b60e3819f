"""What people give by mistake: a row a case, taken as it was meant or refused by name, and nothing has changed."""

import copy
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from torch import nn as tnn
from torch.utils.data import DataLoader, TensorDataset

from ppgen import decoders, distributions, inference, models, nn, plots, posteriors, priors
from ppgen.compare import compare
from ppgen.data import load
from ppgen.inference import EM, Adversarial, History, elbo, fit, iwae, log_likelihood, sample, train, warmup
from ppgen.models import Custom
from ppgen.pair import data_plate

NOISE = torch.Generator().manual_seed(0)
X = torch.bernoulli(torch.full((60, 6), 0.4), generator=NOISE)
R = torch.randn(60, 6, generator=NOISE)
Y = torch.arange(60) % 3
QUIET: dict[str, Any] = {"epochs": 2, "batch_size": 20, "progress": False, "seed": 0}


def binary():
    return models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 8, 6)), posteriors.DiagNormal(nn.MLP(6, 8, 4))
    )


def real():
    return models.VAE(
        priors.StandardNormal(2), decoders.Normal(nn.MLP(2, 8, 6), 1.0), posteriors.DiagNormal(nn.MLP(6, 8, 4))
    )


def levels():
    return models.VAE(
        priors.StandardNormal(2),
        decoders.Categorical(nn.MLP(2, 8, decoders.Categorical.outputs_shape(6, 256)), 256),
        posteriors.DiagNormal(nn.MLP(6, 8, 4, levels=256)),
    )


def normalised():
    net = tnn.Sequential(tnn.Linear(6, 8), tnn.BatchNorm1d(8), tnn.ReLU(), tnn.Linear(8, 4))
    return models.VAE(priors.StandardNormal(2), decoders.Normal(nn.MLP(2, 8, 6), 1.0), posteriors.DiagNormal(net))


def images():
    net = nn.ConvNet((1, 8, 8), 4, channels=(4, 4))
    back = nn.DeconvNet(2, (1, 8, 8), channels=(4, 4))
    return models.VAE(priors.StandardNormal(2), decoders.Bernoulli(back), posteriors.DiagNormal(net))


def conditional():
    return models.VAE(
        priors.StandardNormal(2),
        decoders.Bernoulli(nn.GatedBranches([2, 3], 8, 6)),
        posteriors.DiagNormal(nn.GatedBranches([6, 3], 8, 4)),
    )


def labelled():
    return models.SemiSupervisedVAE(
        priors.StandardNormal(2),
        decoders.Bernoulli(nn.GatedBranches([2, 3], 8, 6)),
        posteriors.DiagNormal(nn.GatedBranches([6, 3], 8, 4)),
        classifier=nn.MLP(6, 8, 3),
        num_classes=3,
    )


def gan():
    return models.GAN(priors.StandardNormal(2), nn.MLP(2, 8, 6), nn.MLP(6, 8, 1))


def mixture():
    return models.GaussianMixture(3, 6)


def functions(of_guide="z", of_model="z"):
    class Pair(tnn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.scale = tnn.Parameter(torch.zeros(6)), tnn.Parameter(torch.zeros(1))

        def model(self, x=None):
            with data_plate(x):
                z = pyro.sample(of_model, dist.Normal(self.loc, 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with data_plate(x):
                pyro.sample(of_guide, dist.Normal(x / 2, self.scale.exp()).to_event(1))

    return Pair()


def no_plate():
    pair = functions()

    def model(x):
        z = pyro.sample("z", dist.Normal(pair.loc, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.expand(x.shape), 1.0).to_event(2), obs=x)

    return Custom(model, lambda x: pyro.sample("z", dist.Normal(pair.loc, 1.0).to_event(1)), net=pair)


def twice():
    """The same name for two sites."""
    pair = functions()

    def model(x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(pair.loc, 1.0).to_event(1))
            pyro.sample("z", dist.Normal(z, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return Custom(model, pair.guide, net=pair)


def with_nan(x, row=-1, value=math.nan):
    x = x.clone()
    x[row, 0] = value
    return x


def read_only(x):
    array = x.numpy().copy()
    array.flags.writeable = False
    return array


def mapped(x):
    """An array that stays on disk."""
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, x.numpy())
        return np.load(file.name, mmap_mode="r")


class Frame:
    """What a data frame has: columns by name, and not rows by number."""

    def __init__(self, x):
        self.values, self.shape, self.columns = x.numpy(), tuple(x.shape), [f"c{i}" for i in range(x.shape[1])]

    def __len__(self):
        return len(self.values)

    def __getitem__(self, column):
        if not isinstance(column, str):
            raise KeyError(column)
        return self.values[:, self.columns.index(column)]

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


class Dicts(torch.utils.data.Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, i):
        return {"image": X[i]}


def loader(x, **options):
    return DataLoader(TensorDataset(x), batch_size=20, **options)


def fitted(data, **settings):
    return lambda pair: fit(pair, data, **{**QUIET, **settings})


class Case(NamedTuple):
    """A call, and the facts that its error names; none where it is taken."""

    pair: Any
    call: Any
    facts: tuple[str, ...] = ()
    also: tuple[type, ...] = ()  # kinds of error that are Pyro's own


def refused(pair, call, *facts):
    return Case(pair, call, facts)


VALUES = {
    "NaN in the first row": refused(real, fitted(with_nan(R, 0)), "data", "nan", "(0, 0)", "Drop the row"),
    "NaN in the last row": refused(real, fitted(with_nan(R)), "data", "nan", "(59, 0)"),
    "+Inf": refused(real, fitted(with_nan(R, 30, math.inf)), "data", "inf", "(30, 0)"),
    "-Inf": refused(real, fitted(with_nan(R, 30, -math.inf)), "data", "-inf", "(30, 0)"),
    "NaN in an array": refused(real, fitted(with_nan(R).numpy()), "nan", "(59, 0)"),
    "NaN in the context only": refused(
        conditional, fitted((X, with_nan(torch.zeros(60, 3)))), "member 1", "nan", "(59, 0)"
    ),
    "NaN only in validation": refused(real, fitted(R, validation=with_nan(R)), "validation", "nan", "(59, 0)"),
    "Inf only in validation": refused(real, fitted(R, validation=with_nan(R, 3, math.inf)), "validation", "inf"),
    "NaN in what is evaluated": refused(real, lambda p: log_likelihood(p, with_nan(R)), "nan", "(59, 0)"),
    "NaN in what is encoded": refused(real, lambda p: inference.encode(p, with_nan(R)), "nan", "(59, 0)"),
    "constant data": Case(real, fitted(torch.ones(60, 6))),
    "a constant feature under EM": Case(
        mixture, lambda p: train(EM(p), torch.cat([R[:, :5], torch.ones(60, 1)], 1), **QUIET)
    ),
    "grey values under a Bernoulli": refused(binary, fitted(X * 0.5), "'x'", "Bernoulli", "Binarise"),
    "0 to 255 where 0 to 1 is meant": refused(binary, fitted(X * 255), "'x'", "0 to 255", "rescale"),
    "0 to 255 as bytes": refused(binary, fitted((X * 255).byte()), "'x'", "0 to 255", "rescale"),
    "-1 to 1 where 0 to 1 is meant": refused(binary, fitted(X * 2 - 1), "'x'", "-1 to 1"),
    "256 in 8-bit levels": refused(levels, fitted(torch.full((60, 6), 256)), "'x'", "256"),
    "levels that are fractions": refused(levels, fitted(torch.full((60, 6), 0.5)), "'x'", "0.5"),
    "huge values": refused(real, fitted(R * 1e30), "loss is inf", "step 1", "'z'", "unexpected range"),
    "large values": Case(real, fitted(R * 1e4)),
    "subnormal values": Case(real, fitted(R * 1e-40)),
    "negative zero": Case(binary, fitted(-torch.zeros(60, 6))),
    "labels below their range": refused(labelled, fitted((X, Y - 5)), "y", "-5 to -3", "0, ..., 2"),
    "labels above their range": refused(labelled, fitted((X, Y + 5)), "y", "5 to 7", "0, ..., 2"),
    "one-hot labels of other width": refused(conditional, fitted((X, torch.zeros(60, 4))), "4", "3"),
}

SHAPES = {
    "no rows": refused(real, fitted(torch.zeros(0, 6)), "data", "empty", "(0, 6)"),
    "no features": refused(real, fitted(torch.zeros(60, 0)), "0", "6"),
    "an empty tuple": refused(real, fitted(()), "data", "empty"),
    "no rows to evaluate": refused(real, lambda p: log_likelihood(p, torch.zeros(0, 6)), "empty"),
    "one row": Case(real, fitted(R[:1])),
    "one row with batch normalisation": refused(normalised, fitted(R[:1]), "1 row", "batch"),
    "N mod batch is 1 with batch normalisation": refused(
        normalised, fitted(R[:41]), "1 row", "41 rows", "batch_size=20", "choose another"
    ),
    "N mod batch is 1": Case(real, fitted(R[:41])),
    "N below the batch": Case(real, fitted(R[:7], batch_size=1000)),
    "a batch of billions": Case(real, fitted(R, batch_size=10**12)),
    "one feature": Case(
        lambda: models.VAE(
            priors.StandardNormal(1), decoders.Normal(nn.MLP(1, 4, 1), 1.0), posteriors.DiagNormal(nn.MLP(1, 4, 2))
        ),
        fitted(R[:, :1]),
    ),
    "transposed": refused(real, fitted(R.T), "60", "6", "reshape"),
    "one-dimensional": refused(real, fitted(R[:, 0]), "(20,)", "6"),
    "one-dimensional for a mixture": refused(mixture, lambda p: train(EM(p), R[:, 0], **QUIET), "(20,)", "6"),
    "as many numbers as a datum has": refused(real, fitted(R[0]), "'x'", "(6,)", "unsqueeze(0)"),
    "the same, evaluated": refused(real, lambda p: log_likelihood(p, R[0]), "'x'", "(6,)", "unsqueeze(0)"),
    "a single number": refused(real, fitted(torch.tensor(3.0)), "data", "single number"),
    "a flat image": refused(images, fitted(torch.zeros(60, 64)), "(1, 8, 8)", "64"),
    "channels last": refused(images, fitted(torch.zeros(60, 8, 8, 1)), "(1, 8, 8)", "8, 8, 1"),
    "an axis too many": refused(real, fitted(R.unsqueeze(1)), "'z'", "axis -2", "squeeze(1)"),
    "an axis too many, evaluated": refused(real, lambda p: log_likelihood(p, R.unsqueeze(1)), "'z'", "axis -2"),
    "an axis too many, encoded": refused(real, lambda p: inference.encode(p, R.unsqueeze(1)), "'z'", "axis -2"),
    "an axis too many for a mixture": refused(mixture, fitted(R.unsqueeze(1)), "(20, 1, 6)", "(N, 6)"),
    "an image without a channel": refused(images, fitted(torch.zeros(60, 8, 8)), "(1, 8, 8)"),
    "members of other lengths": refused(conditional, fitted((X, torch.zeros(59, 3))), "differ in length", "[60, 59]"),
    "labels too few": refused(labelled, fitted((X, Y[:50])), "differ in length", "[60, 50]"),
    "ragged rows": refused(real, fitted([[1.0, 2.0], [3.0]]), "data", "list"),
    "validation of another width": refused(real, fitted(R, validation=R[:, :5]), "validation", "5"),
    "evaluated at another width": refused(real, lambda p: log_likelihood(p, R[:, :5]), "5", "6"),
    "encoded at another width": refused(real, lambda p: inference.encode(p, R[:, :5]), "5", "6"),
    "decoded at another width": refused(real, lambda p: inference.decode(p, torch.zeros(4, 3)), "3", "2"),
    "a mask of another shape": refused(real, fitted(R, mask=torch.ones(60, 5, dtype=torch.bool)), "mask", "(60, 5)"),
}

TYPES = {
    "a list of lists": refused(real, fitted([[1.0] * 6] * 60), "data", "list", "tensor"),
    "a text": refused(real, fitted("mnist"), "data", "str", "tensor"),
    "None": refused(real, fitted(None), "data", "NoneType"),
    "a dictionary": refused(real, fitted({"x": R}), "data", "dict"),
    "a set": refused(real, fitted({1.0, 2.0}), "data", "set"),
    "an iterator": refused(real, fitted(row for row in R), "data", "generator"),
    "an array of texts": refused(real, fitted(np.array([["a"] * 6] * 60)), "data", "<U1", "numbers"),
    "an array of objects": refused(real, fitted(np.array([[None] * 6] * 60)), "data", "object", "numbers"),
    "an array of dates": refused(real, fitted(np.zeros((60, 6), "datetime64[s]")), "data", "datetime64", "numbers"),
    "a complex array": refused(real, fitted(R.numpy() + 1j), "data", "complex", "numbers"),
    "a complex tensor": refused(real, fitted(R + 1j), "data", "complex", "numbers"),
    "a structured array": refused(real, fitted(np.zeros(60, [("a", float)])), "data", "numbers"),
    "a masked array": refused(real, fitted(np.ma.masked_array(R.numpy(), R.numpy() > 1)), "data", "mask"),
    "a data frame": refused(real, fitted(Frame(R)), "data", "Frame", "tensor"),
    "a sparse tensor": refused(real, fitted(R.to_sparse()), "data", "sparse", "to_dense"),
    "a sparse matrix": refused(real, fitted(scipy.sparse.csr_matrix(R.numpy())), "data", "csr_matrix"),
    "a tensor without values": refused(real, fitted(R.to("meta")), "data", "meta"),
    "integers under a Normal": Case(real, fitted((R * 3).long())),
    "bytes under a Bernoulli": Case(binary, fitted(X.byte())),
    "booleans": Case(binary, fitted(X.bool())),
    "booleans under a Normal": Case(real, fitted(R > 0)),
    "float16": Case(real, fitted(R.half())),
    "bfloat16": Case(real, fitted(R.bfloat16())),
    "float64": Case(real, fitted(R.double())),
    "a float64 array": Case(real, fitted(R.double().numpy())),
    "big-endian": Case(real, fitted(R.numpy().astype(">f4"))),
    "unsigned 16 bits": Case(real, fitted(np.ones((60, 6), np.uint16))),
    "levels of 16 bits": Case(levels, fitted(np.full((60, 6), 255, np.uint16))),
    "levels of 16 bits on disk": Case(levels, fitted(mapped(torch.full((60, 6), 255, dtype=torch.uint16)))),
    "256 in 16 bits": refused(levels, fitted(np.full((60, 6), 256, np.uint16)), "'x'", "256"),
    "a tensor of 32 bits": Case(levels, fitted(torch.full((60, 6), 255, dtype=torch.uint32))),
    "labels of 64 bits": Case(labelled, fitted((X, Y.to(torch.uint64)))),
    "more than int64 holds": refused(
        real, fitted(np.full((60, 6), 2**63, np.uint64)), "data", "uint64", "9223372036854775808", "int64", "floats"
    ),
    "labels over int64": refused(
        labelled, fitted((X, np.full(60, 2**64 - 1, np.uint64))), "data[1]", "uint64", "18446744073709551615"
    ),
    "negative strides": Case(real, fitted(R.numpy()[::-1, ::-1])),
    "not contiguous": Case(real, fitted(R.T.contiguous().T)),
    "expanded": Case(real, fitted(R[:1].expand(60, 6))),
    "memory-mapped": Case(real, fitted(mapped(R))),
    "memory-mapped, with NaN": refused(real, fitted(mapped(with_nan(R))), "data", "nan", "(59, 0)"),
    "memory-mapped, evaluated": Case(real, lambda p: log_likelihood(p, mapped(R), num_samples=3)),
    "read-only": Case(real, fitted(read_only(R))),
    "with gradients": Case(real, fitted(R.clone().requires_grad_())),
    "a parameter": Case(real, fitted(tnn.Parameter(R.clone()))),
    "float labels": refused(labelled, fitted((X, Y.float())), "y", "float32"),
    "labels as texts": refused(labelled, fitted((X, np.array(["a"] * 60))), "data[1]", "<U1"),
    "class numbers where one-hot is meant": refused(conditional, fitted((X, Y)), "one_hot"),
    "a loader of dictionaries": refused(real, fitted(DataLoader(Dicts(), 20)), "data", "dict", "tuple"),
    "an empty loader": refused(real, fitted(DataLoader(TensorDataset(R[:0]), 20)), "data", "no batches"),
    "a loader that drops all": refused(real, fitted(loader(R[:5], drop_last=True)), "data", "no batches"),
    "a loader's batch of NaN": refused(real, fitted(loader(with_nan(R, 0))), "batch 0", "nan"),
    "a loader of texts": refused(real, fitted(DataLoader(["a"] * 60, 20)), "data", "str"),
}

SETTINGS = {
    **{
        f"{name}={value!r}": refused(real, fitted(R, **{name: value}), name, repr(value))
        for name, values in {
            "epochs": (0, -1, 1.5, True, "3", None, math.nan, math.inf),
            "batch_size": (0, -5, 2.5, False, "20"),
            "patience": (0, -1, 1.5),
            "seed": (1.5, "0", math.nan),
            "device": ("gpu", "cuda:99x", 3.5),
            "precision": ("fp8", 16),
            "loss": ("elbo", 3),
            "optimizer": ("adam", 0.1),
        }.items()
        for value in values
    },
    "patience without validation": refused(real, fitted(R, patience=3), "patience=3", "validation"),
    "an unknown setting": refused(real, fitted(R, lr=0.1), "lr"),
    "a negative seed": Case(real, fitted(R, seed=-1)),
    "a huge seed": Case(real, fitted(R, seed=2**62)),
    "a seed beyond 64 bits": refused(real, fitted(R, seed=2**70), "seed", str(2**70)),
    "learning rate NaN": refused(
        real, fitted(R, optimizer=lambda p: torch.optim.Adam(p, lr=math.nan)), "learning rate", "nan"
    ),
    "learning rate infinite": refused(
        real, fitted(R, optimizer=lambda p: torch.optim.Adam(p, lr=math.inf)), "lr", "inf"
    ),
    "learning rate negative": refused(real, fitted(R, optimizer=lambda p: torch.optim.Adam(p, lr=-1.0)), "-1.0"),
    "an optimiser that asks for losses": refused(real, fitted(R, optimizer=torch.optim.LBFGS), "LBFGS", "closure"),
    "an optimiser of nothing": refused(real, fitted(R, optimizer=torch.optim.Adam([torch.zeros(1)])), "optimizer"),
    "an optimiser class of another library": refused(
        real, fitted(R, optimizer=pyro.optim.Adam({"lr": 0.1})), "optimizer"
    ),
    "num_samples=0": refused(real, lambda p: log_likelihood(p, R, num_samples=0), "num_samples", "0"),
    "num_samples=2.5": refused(real, lambda p: log_likelihood(p, R, num_samples=2.5), "num_samples", "2.5"),
    "no samples": refused(real, lambda p: sample(p, 0), "n ", "0"),
    "half a sample": refused(real, lambda p: sample(p, 1.5), "n ", "1.5"),
    "num_particles=0": refused(real, lambda p: fit(p, R, loss=iwae(0), **QUIET), "0"),
    "beta NaN": refused(real, lambda p: fit(p, R, loss=elbo(beta=math.nan), **QUIET), "beta", "nan"),
    "beta negative": refused(real, lambda p: fit(p, R, loss=elbo(beta=-1), **QUIET), "beta", "-1"),
    "free bits negative": refused(real, lambda p: fit(p, R, loss=elbo(free_bits=-1), **QUIET), "free_bits", "-1"),
    "beta in words": refused(real, lambda p: elbo(beta="1"), "beta", "'1'"),
    "no free bits": refused(real, lambda p: elbo(free_bits=None), "free_bits", "None"),
    "an order in words": refused(real, lambda p: inference.renyi("a", 3), "alpha", "'a'"),
    "no weight of labels": refused(real, lambda p: inference.semi_supervised(None), "alpha", "None"),
    "warm-up from nothing": refused(real, lambda p: warmup(3, start=None), "start", "None"),
    "one scale": refused(real, lambda p: inference.repaired_log_likelihood(p, R, scales=2.0), "scales", "2.0"),
    "no scale": refused(real, lambda p: inference.repaired_log_likelihood(p, R, scales=()), "scales", "()"),
    "a range the other way round": refused(
        real, lambda p: posteriors.DiagNormal(nn.MLP(3, 4), log_scale_range=(1.0, -3.0)), "log_scale_range", "-3.0"
    ),
    "a range of one number": refused(
        real, lambda p: decoders.Normal(nn.MLP(3, 4), log_scale_range=2.0), "log_scale_range", "(low, high)", "2.0"
    ),
    "a list beside a mask": refused(
        real, lambda p: log_likelihood(p, [[0.0] * 6], mask=torch.ones(1, 6).bool()), "x is list"
    ),
    "training on a list beside a mask": refused(
        real, lambda p: fit(p, [[0.0] * 6], mask=torch.ones(1, 6).bool(), **QUIET), "x is list"
    ),
    "impute without a mask": refused(real, lambda p: inference.impute(p, R, mask=None), "mask is None"),
    "pairs without names": refused(real, lambda p: compare([p], R), "pairs must be a dictionary", "list"),
    "warm-up without an end": refused(
        real, lambda p: fit(p, R, loss=elbo(beta=warmup(float("inf"))), **QUIET), "positive finite number", "inf"
    ),
    "warm-up of no epochs": refused(real, lambda p: fit(p, R, loss=elbo(beta=warmup(0)), **QUIET), "epochs", "0"),
    "latent_dim=0": refused(real, lambda p: priors.StandardNormal(0), "0"),
    "latent_dim=-1": refused(real, lambda p: priors.StandardNormal(-1), "-1"),
    "latent_dim=1.5": refused(real, lambda p: priors.StandardNormal(1.5), "1.5"),
    "no components": refused(real, lambda p: priors.MixtureOfGaussians(0, 2), "0"),
    "more pseudo-inputs than data": refused(real, lambda p: catalogued(100), "num_components=100", "60"),
    "an unknown prior": refused(real, lambda p: recipe(prior="gauss").build(), "prior", "'gauss'", "standard"),
    "an unknown model": refused(real, lambda p: named("vea"), "model", "'vea'", "'vae'"),
    "an unknown covariance": refused(real, lambda p: models.GaussianMixture(2, 6, "round"), "covariance", "round"),
    "more components than data": refused(
        lambda: models.GaussianMixture(70, 6), lambda p: train(EM(p), R, **{**QUIET, "batch_size": 60}), "70", "60"
    ),
    "restarts negative": refused(mixture, lambda p: EM(p, num_restarts=-1), "num_restarts", "-1"),
    "tolerance NaN": refused(mixture, lambda p: EM(p, tolerance=math.nan), "tolerance", "nan"),
    "a tolerance in words": refused(mixture, lambda p: EM(p, tolerance="fine"), "tolerance", "'fine'"),
    "warm-up of half a step": refused(real, lambda p: warmup(steps=1.5), "steps", "1.5"),
    "an eps in words": refused(
        real, lambda p: inference.normalize_gradients(torch.optim.Adam(p.parameters()), eps="small"), "eps", "'small'"
    ),
    "a commitment in words": refused(real, lambda p: nn.VectorQuantizer(4, 2, commitment="1"), "commitment", "'1'"),
    "a range in words": refused(
        real, lambda p: priors.VampPrior(p.posterior, num_components=3, low="a"), "(low, high)", "'a'"
    ),
    "traversals over a number": refused(
        images, lambda p: plots.traversals(p, torch.zeros(3, 1, 8, 8), Path("no.png"), span=3), "span", "3"
    ),
    "layers of no width": refused(real, lambda p: nn.ConvNet((1, 8, 8), 4, hidden=(0,)), "hidden", "0"),
    "one width, not a sequence": refused(real, lambda p: nn.ConvNet((1, 8, 8), 4, hidden=128), "hidden", "128"),
    "a network of no channels": refused(real, lambda p: nn.ConvNet((1, 8, 8), 4, channels=(0,)), "channels", "0"),
    "widths in words": refused(real, lambda p: nn.DeconvNet(2, (1, 8, 8), hidden=("a",)), "hidden", "'a'"),
    "half a category": refused(real, lambda p: nn.PixelCNN((1, 4, 4), (1, 4, 4), categories=2.5), "categories", "2.5"),
    "one level": refused(real, lambda p: nn.MLP(4, 4, levels=1), "levels must be at least 2", "1"),
    "levels of a distribution": refused(
        real, lambda p: distributions.DiscretizedLogistic(R, R, 1), "num_levels must be at least 2", "1"
    ),
    "a flow of a negative context": refused(real, lambda p: priors.Flow.maf(3, context_dim=-1), "context_dim", "-1"),
    "a flow without its context": refused(real, lambda p: priors.Flow.maf(3, context_dim=2)(), "without y"),
    "a flow given another context": refused(
        real, lambda p: priors.Flow.realnvp(3, context_dim=2)(torch.zeros(5, 3)), "(2,)", "(5, 3)"
    ),
    "a flow of no width": refused(real, lambda p: priors.Flow.maf(3, hidden=(0,)), "hidden", "0"),
    "a spline of no bins": refused(real, lambda p: priors.Flow.nsf(3, bins=0), "bins", "0"),
    "critic_steps=0": refused(gan, lambda p: Adversarial(p, critic_steps=0), "critic_steps", "0"),
}


def catalogued(components):
    from ppgen.catalogue import pseudo_inputs

    return pseudo_inputs(R, components, 0)


def recipe(**settings):
    return named("vae", **settings)


def named(model, **settings):
    from ppgen.catalogue import Recipe

    return Recipe(model, (1, 8, 8), settings=settings)


def misfit():
    """An encoder of other width than its posterior needs."""
    return models.VAE(
        priors.StandardNormal(2), decoders.Normal(nn.MLP(2, 8, 6), 1.0), posteriors.DiagNormal(nn.MLP(6, 8, 5))
    )


def other_latents():
    return models.VAE(
        priors.StandardNormal(3), decoders.Normal(nn.MLP(2, 8, 6), 1.0), posteriors.DiagNormal(nn.MLP(6, 8, 4))
    )


def without_parameters():
    return Custom(lambda x: None, lambda x: None)


PROGRAMS = {
    "a latent that the guide calls otherwise": refused(lambda: functions("w"), fitted(R), "'z'", "guide"),
    "the same, evaluated": refused(lambda: functions("w"), lambda p: log_likelihood(p, R), "'z'", "guide"),
    "no plate, evaluated": refused(no_plate, lambda p: log_likelihood(p, R), "plate"),
    "one name for two sites": Case(twice, fitted(R), ("'z'", "Multiple"), (RuntimeError,)),
    "no parameters": refused(without_parameters, fitted(R), "parameters"),
    "an odd number of outputs": refused(real, lambda p: misfit(), "net.out_shape", "5", "4"),
    "a posterior of another size than the prior": refused(other_latents, fitted(R), "3", "2"),
    "two models of the same names": Case(binary, lambda p: both_train(p)),
    "a class, not an object": refused(binary, lambda p: fit(models.VAE, X, **QUIET), "pair"),
    "a network, not a pair": refused(binary, lambda p: fit(p.posterior, X, **QUIET), "pair", "model"),
    "a GAN where a pair is meant": refused(gan, fitted(R), "guide", "Adversarial"),
    "a pair where a GAN is meant": refused(binary, lambda p: train(Adversarial(p), X, **QUIET), "Adversarial"),
    "a GAN's likelihood": refused(gan, lambda p: log_likelihood(p, R), "guide"),
    "a pair where a mixture is meant": refused(binary, lambda p: train(EM(p), X, **QUIET), "EM", "initialize"),
    "a mask for a pair that takes none": refused(functions, fitted(R, mask=R > 0), "mask"),
    "a context where none is taken": refused(functions, fitted((R, Y)), "2"),
    "no context where one is needed": refused(conditional, fitted(X), "3"),
    "too few rows of context": refused(conditional, lambda p: sample(p, 5, torch.zeros(4, 3)), "y[0]", "4", "5"),
    "pairs of other data compared": refused(
        binary, lambda p: compare({"a": p, "b": images()}, X, num_samples=3, seed=0), "b"
    ),
    "train without a step": refused(binary, lambda p: train(p, X, **QUIET), "step"),
}


def both_train(pair):
    """Two pairs of one class, one after the other, as Pyro's own store would mix up."""
    other = copy.deepcopy(pair)
    before = [q.detach().clone() for q in other.parameters()]
    history = fit(pair, X, **QUIET)
    fit(other, X, **QUIET)
    assert all(not torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    return history


CASES = {**VALUES, **SHAPES, **TYPES, **SETTINGS, **PROGRAMS}


def state_of(pair):
    return {name: value.detach().clone() for name, value in pair.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_taken_as_it_was_meant_or_refused_by_name(name):
    case = CASES[name]
    pair = case.pair()
    if "EM" in name:  # whose first use imports scikit-learn
        train(EM(mixture()), R, **QUIET)
    before, modes = state_of(pair), [m.training for m in pair.modules()]
    began = time.process_time()
    if not case.facts:
        result = case.call(pair)
        values = result.loss if isinstance(result, History) else result.values.tolist()
        assert all(math.isfinite(value) for value in values)
        assert all(value.isfinite().all() for value in pair.state_dict().values())
    else:
        kinds = (ValueError, TypeError, FloatingPointError, *case.also)
        with pytest.raises(kinds) as error:
            case.call(pair)
        message = str(error.value)
        assert [fact for fact in case.facts if fact not in message] == [], message
        assert equal(state_of(pair), before)
        assert [m.training for m in pair.modules()] == modes
    assert time.process_time() - began < 1


def test_there_are_enough_rows():
    assert len(CASES) >= 60


def test_data_on_disk_and_in_memory_give_the_same():
    pairs = [real()]
    pairs.append(copy.deepcopy(pairs[0]))
    losses = [fit(pair, data, **QUIET).loss for pair, data in zip(pairs, (R, mapped(R)), strict=True)]
    assert losses[0] == losses[1]
    x = R.double()
    assert fit(real(), x, **QUIET).loss[0] == pytest.approx(losses[0][0], rel=0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row", [0, 25, 59])
def test_a_loaders_bad_batch_ends_the_run_before_its_step(bad, row):
    torch.manual_seed(0)
    pair = real()
    good = copy.deepcopy(pair)
    with pytest.raises(ValueError, match=rf"batch {row // 20} of data holds {bad}.*finite"):
        fit(pair, loader(with_nan(R, row, bad)), **QUIET)
    done = row // 20
    if done:  # the state after the last good step, as of a run that was given no more
        fit(good, loader(R[: 20 * done]), **{**QUIET, "epochs": 1})
    assert equal(state_of(pair), state_of(good))
    assert all(value.isfinite().all() for value in pair.state_dict().values())


class Batches:
    """A loader of a user's own, which breaks off after so many batches."""

    dataset = R

    def __init__(self, count, broken):
        self.count, self.broken = count, broken

    def __len__(self):
        return 3

    def __iter__(self):
        yield from R.split(20)[: self.count]
        if self.broken:
            raise OSError("the disk is gone")


def test_a_loader_that_fails_in_the_middle_leaves_the_last_good_state():
    torch.manual_seed(0)
    pair = real()
    good = copy.deepcopy(pair)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(pair, Batches(2, True), **QUIET)
    fit(good, Batches(2, False), **{**QUIET, "epochs": 1})
    assert equal(state_of(pair), state_of(good)) and all(m.training for m in pair.modules())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_that_may_not_be_read(tmp_path):
    np.save(tmp_path / "x.npy", R.numpy())
    (tmp_path / "x.npy").chmod(0)
    with pytest.raises(PermissionError, match=r"x\.npy cannot be read"):
        load(tmp_path / "x.npy")
