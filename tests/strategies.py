"""Arguments for the fuzzing of public functions: shapes, values and small models, by the names of parameters."""

import math
import tempfile
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import nn as tnn
from torch.distributions import Independent, Normal

from ppgen import decoders, models, nn, posteriors, priors
from ppgen.inference import EM, SVI, Adversarial, Estimate, History
from ppgen.inference.losses.adversarial import nonsaturating
from ppgen.judge import Classifier

# Small things to call with.


def vae():
    return models.VAE(
        priors.StandardNormal(2), decoders.Bernoulli(nn.MLP(2, 4, 6)), posteriors.DiagNormal(nn.MLP(6, 4, 4))
    )


def continuous():
    return models.VAE(
        priors.StandardNormal(2), decoders.Normal(nn.MLP(2, 4, 6), 1.0), posteriors.DiagNormal(nn.MLP(6, 4, 4))
    )


def labelled():
    return models.SemiSupervisedVAE(
        priors.StandardNormal(2),
        decoders.Bernoulli(nn.GatedBranches([2, 3], 4, 6)),
        posteriors.DiagNormal(nn.GatedBranches([6, 3], 4, 4)),
        classifier=nn.MLP(6, 4, 3),
        num_classes=3,
    )


def gan():
    return models.GAN(priors.StandardNormal(2), nn.MLP(2, 4, 6), nn.MLP(6, 4, 1))


PAIRS = [vae, continuous, labelled, gan, lambda: models.GaussianMixture(2, 6), lambda: models.FactorAnalysis(6, 2)]
NETS = [
    lambda: nn.MLP(2, 4, 6),
    lambda: nn.MLP(6, 4, 4),
    lambda: nn.MLP(6, 4, 1),
    lambda: nn.MLP(6, 4, (2, 2, 2)),
    lambda: nn.GatedMLP(6, 4, 12),
    lambda: nn.GatedBranches([6, 3], 4, 4),
    lambda: nn.MLP((1, 2, 3), 4, 3),
]
PRIORS = [lambda: priors.StandardNormal(2), lambda: priors.DiagNormal(3), lambda: priors.MixtureOfGaussians(2, 2)]
POSTERIORS = [lambda: posteriors.DiagNormal(nn.MLP(6, 4, 4)), lambda: posteriors.FullNormal(nn.MLP(6, 4, 5), 2)]
DECODERS = [
    lambda: decoders.Bernoulli(nn.MLP(2, 4, 6)),
    lambda: decoders.Normal(nn.MLP(2, 4, 6), 1.0),
    lambda: decoders.Categorical(nn.MLP(2, 4, 12), 2),
]
ESTIMATES = [
    lambda n=n: Estimate(*(torch.zeros(n) for _ in range(5)), torch.ones(n, dtype=torch.bool), 100, data=(str(n),))
    for n in (1, 3)
]


def one_of(makers):
    return st.sampled_from(makers).map(lambda make: make())


@st.composite
def tensors(draw, ranks=(1, 2, 3, 4), sizes=(0, 1, 2, 3, 6, 8), kinds=None):
    rank = draw(st.sampled_from(ranks))
    shape = [draw(st.sampled_from(sizes)) for _ in range(rank)]
    kind = draw(st.sampled_from(kinds or KINDS))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 3)))
    return KINDS_OF_VALUES[kind](torch.randn(shape, generator=noise))


KINDS_OF_VALUES = {
    "normal": lambda x: x,
    "binary": lambda x: (x > 0).float(),
    "share": torch.sigmoid,
    "zero": torch.zeros_like,
    "constant": torch.ones_like,
    "bytes": lambda x: (x.abs() * 50).byte(),
    "classes": lambda x: (x.abs() * 2).long().clamp(max=2),
    "integers": lambda x: (x * 3).long(),
    "booleans": lambda x: x > 0,
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "huge": lambda x: x * 1e38,
    "tiny": lambda x: x * 1e-40,
    "infinite": lambda x: torch.where(x > 1, math.inf, x),
    "missing": lambda x: torch.where(x > 1, math.nan, x),
    "strided": lambda x: x.flip(0).transpose(0, -1),
}
KINDS = list(KINDS_OF_VALUES)
# What fits the pairs above, and what nearly does.
BATCHES = tensors(ranks=(1, 2, 2, 2, 2, 3), sizes=(1, 2, 6, 6, 6))
COUNTS = st.sampled_from([1, 2, 3, 1, 2, 3, 4, 6, 0, -1])
NUMBERS = st.sampled_from([0.5, 1.0, 2.0, 0.5, 1.0, 0.0, -1.0, 1e-30, 1e30, math.nan, math.inf])
SHAPES = st.one_of(COUNTS, st.lists(COUNTS, max_size=4).map(tuple))
SIZES = st.lists(COUNTS, max_size=3).map(tuple)


def folder():
    return Path(tempfile.mkdtemp(dir=SCRATCH.name))


SCRATCH = tempfile.TemporaryDirectory()
PATHS = st.sampled_from(["a.png", "a.pdf", "no/such/folder.png", "a"]).map(lambda name: folder() / name)
RANGES = st.tuples(NUMBERS, NUMBERS)
DISTRIBUTIONS = st.sampled_from(
    [
        lambda: Normal(torch.zeros(6), 1.0),
        lambda: Independent(Normal(torch.zeros(2, 6), 1.0), 1),
        lambda: torch.distributions.Bernoulli(logits=torch.zeros(3, 6)),
        lambda: torch.distributions.Poisson(3.0),
    ]
).map(lambda make: make())
TRANSFORMS = st.sampled_from(
    [
        torch.distributions.ExpTransform(),
        torch.distributions.AffineTransform(0.0, 2.0),
        torch.distributions.SigmoidTransform(),
    ]
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["model", "log_likelihood", "seconds"]), NUMBERS), max_size=2)
SEEDS = st.sampled_from([0, 1, 7, -1, 2**63, 2**64])

# By the name of the parameter, where that says what it is; by the function too, where that is not enough.
BY_NAME = {
    "pair": one_of(PAIRS),
    "gan": one_of(PAIRS),
    "net": one_of(NETS),
    "generator": one_of(NETS),
    "encoder": one_of(NETS),
    "discriminator": one_of(NETS),
    "classifier": one_of(NETS),
    "output": one_of(NETS),
    "features": st.none(),
    "prior": one_of(PRIORS),
    "posterior": one_of(POSTERIORS),
    "decoder": one_of(DECODERS),
    "density": one_of(PRIORS),
    "model": one_of(PAIRS),
    "guide": st.just(lambda x: None),
    "flow": one_of(NETS),
    "conditionals": st.lists(one_of(PRIORS), max_size=2),
    "posteriors": st.lists(one_of(POSTERIORS), max_size=2),
    "encoders": st.lists(one_of(NETS), max_size=2),
    "priors": st.none(),
    "quantizer": st.just(None).map(lambda _: nn.VectorQuantizer(3, 2)),
    "quantizers": st.lists(st.just(None).map(lambda _: nn.VectorQuantizer(3, 2)), max_size=2),
    "data": st.one_of(BATCHES, st.tuples(BATCHES, tensors(ranks=(1,), kinds=["classes", "integers"]))),
    "mask": st.one_of(st.none(), tensors(kinds=["booleans", "normal"])),
    "epochs": COUNTS,
    "num_samples": COUNTS,
    "validation": st.one_of(st.none(), BATCHES),
    "validation_mask": st.none(),
    "optimizer": st.none(),
    "compile": st.sampled_from([False, None]),
    "precision": st.sampled_from(["float32", "bf16", "float8"]),
    "device": st.sampled_from(["cpu", "auto", "nowhere"]),
    "progress": st.just(False),
    "seed": SEEDS,
    "checkpoint": st.none(),
    "checkpoint_every": NUMBERS,
    "skip_nonfinite": st.booleans(),
    "memory": COUNTS,
    "loss": st.just(None),
    "path": PATHS,
    "shape": SHAPES,
    "in_shape": SHAPES,
    "out_shape": SHAPES,
    "sizes": SHAPES,
    "in_shapes": st.lists(SHAPES, max_size=2),
    "context_shapes": st.lists(SHAPES, max_size=1),
    "hidden": SIZES,
    "channels": SIZES,
    "log_scale_range": RANGES,
    "span": RANGES,
    "distribution": DISTRIBUTIONS,
    "base": DISTRIBUTIONS,
    "components": DISTRIBUTIONS,
    "whole": DISTRIBUTIONS,
    "transform": TRANSFORMS,
    "transforms": TRANSFORMS,
    "from_prior": st.sampled_from([(), ("z",), ("w",)]),
    "scales": st.lists(NUMBERS, max_size=3),
    "activation": st.just(tnn.ReLU),
    "layer": st.none(),
    "norm": st.none(),
    "categories": st.none(),
    "levels": st.one_of(st.none(), COUNTS),
    "num_latents": st.one_of(st.none(), COUNTS),
    "temperature": st.one_of(st.none(), NUMBERS),
    "pseudo_inputs": st.one_of(st.none(), BATCHES),
    "class_probs": st.none(),
    "latent_shape": st.one_of(st.none(), SHAPES),
    "first": one_of(ESTIMATES),
    "second": one_of(ESTIMATES),
    "names": st.just(("a", "b")),
    "estimates": st.dictionaries(st.sampled_from("ab"), one_of(ESTIMATES)),
    "before": st.none(),
    "after": st.none(),
    "pairs": st.dictionaries(st.sampled_from("ab"), one_of(PAIRS[:2])),
    "details": st.none(),
    "step": st.sampled_from(
        [lambda: SVI(vae()), lambda: EM(models.GaussianMixture(2, 6)), lambda: Adversarial(gan())]
    ).map(lambda make: make()),
    "rows": ROWS,
    "history": st.just(History([1.0], [2.0], [0.1])),
    "pictures": tensors(),
    "groups": st.dictionaries(st.sampled_from("ab"), tensors()),
    "function": st.just(torch.exp),
    "owner": st.just("net"),
    "name": st.sampled_from(["x", "z"]),
    "obs": st.one_of(st.none(), BATCHES),
    "known": st.lists(st.sampled_from(["vae", "gan"])),
    "kind": st.just("model"),
    "steps": COUNTS,
    "validate_args": st.none(),
    "train": tensors(),
    "small": st.none(),
    "large": st.none(),
    "context": BATCHES,
    "start": st.sampled_from(["guide", "prior", "else"]),
    "content": st.binary(max_size=20),
    "value": st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=2)),
    "convolution": st.sampled_from([tnn.Conv2d, tnn.ConvTranspose2d]),
    "arguments": COUNTS,
    "num_groups": COUNTS,
    "critic_optimizer": st.none(),
    "generator_optimizer": st.none(),
    "event_shape": st.one_of(st.none(), SHAPES),
    "min_variance": NUMBERS,
    "reg_covar": NUMBERS,
    "covariance": st.sampled_from(["full", "tied", "diag", "spherical", "round"]),
    "real": tensors(ranks=(2, 4)),
    "generated": tensors(ranks=(2, 4)),
    "codes": tensors(ranks=(2,), sizes=(1, 3, 30)),
    "factors": tensors(ranks=(2,), sizes=(1, 3, 30), kinds=["classes", "normal"]),
    "num_trees": COUNTS,
    "num_bins": COUNTS,
    "m1": st.just(None).map(lambda _: vae()),
    "m2": st.just(None).map(lambda _: labelled()),
    "name_or_path": st.sampled_from(["digits", "digit", "./nothing.npy", ""]),
    "data_dir": st.none(),
    "download": st.just(False),
    "binarize": st.sampled_from([None, "fixed", "dynamic", "other"]),
    "num_pilot": COUNTS,
    "num_aggregate": st.sampled_from([0, -1, 20]),
    "z": st.one_of(
        BATCHES, tensors(ranks=(2,), sizes=(2,)), st.dictionaries(st.sampled_from(["z", "w"]), BATCHES, min_size=1)
    ),
    "y": tensors(ranks=(1, 2), sizes=(1, 3, 6), kinds=["classes", "binary"]),
    "x": BATCHES,
    "a": BATCHES,
    "b": BATCHES,
    "batch": BATCHES,
}
BY_FUNCTION = {
    ("elbo", "beta"): NUMBERS,
    ("inference.EM", "model"): st.sampled_from(PAIRS[4:]).map(lambda make: make()),
    ("inference.EM", "num_restarts"): COUNTS,
    ("Custom", "model"): st.just(lambda x=None: None),
    ("Custom", "modules"): st.none(),
    ("catalogue.Recipe", "model"): st.sampled_from(["vae", "gmm", "pixelcnn", "vea"]),
    ("catalogue.Recipe", "settings"): st.dictionaries(st.sampled_from(["latent_dim", "hidden", "prior"]), SHAPES),
    ("catalogue.lookup", "name"): st.sampled_from(["vae", "vea", "", "a:b"]),
    ("catalogue.settings_of", "function"): st.just(lambda *, a=1, b=2: None),
    ("inference.semi_supervised", "loss"): st.just(None),
    ("judge.class_shares", "generated"): BATCHES,
    ("judge.stacked_coverage", "generated"): tensors(ranks=(4,), sizes=(1, 3, 8)),
    ("judge.sample_report", "classifier"): st.one_of(st.none(), st.just(None).map(lambda _: Classifier((6,), 3))),
    ("judge.mode_coverage", "generated"): tensors(ranks=(2,), sizes=(2, 3)),
    ("judge.mode_coverage", "centres"): tensors(ranks=(2,), sizes=(2, 3)),
    ("judge.train_classifier", "labels"): tensors(ranks=(1,), kinds=["classes", "normal", "integers"]),
    ("data.stacked", "images"): tensors(ranks=(4, 3), sizes=(1, 2, 3)),
    ("data.stacked", "labels"): tensors(ranks=(1,), sizes=(1, 2, 3), kinds=["classes", "integers"]),
    ("distributions.LogisticMixture", "num_levels"): COUNTS,
    ("inference.Adversarial", "loss"): st.just(None).map(lambda _: nonsaturating()),
    ("nn.DiagonalBiLSTM", "channels"): COUNTS,
    ("nn.RowLSTM", "channels"): COUNTS,
    **{
        (f"nn.{name}", "channels"): COUNTS
        for name in ("GatedPixelCNN", "PixelCNN", "PixelCNNPlusPlus", "PixelRNN", "ResidualConvNet")
    },
    ("nn.PixelRNN", "layer"): st.sampled_from([nn.RowLSTM, nn.DiagonalBiLSTM]),
    ("nn.batched", "x"): tensors(),
    ("nn.check_event", "shape"): SIZES,
    ("nn.concat", "context"): tensors(),
    ("nn.feed", "context"): tensors(),
    ("pair.adapt", "distribution"): st.one_of(DISTRIBUTIONS, st.none()),
    ("plots.is_picture", "shape"): SIZES,
    ("plots.images", "columns"): COUNTS,
    ("priors.CategoricalGrid", "shape"): SHAPES,
    ("inference.normalize_gradients", "optimizer"): st.just(None).map(
        lambda _: torch.optim.SGD(vae().parameters(), 0.1)
    ),
    ("files.parse_json", "path"): st.just(Path("x.json")),
    ("files.read_json", "path"): st.just(Path("/nothing/x.json")),
    ("files.write_json", "path"): PATHS,
    ("files.write_bytes", "path"): PATHS,
    ("files.write_csv", "columns"): st.lists(st.sampled_from(["", "a"]), max_size=2),
    ("errors.first_line", "error"): st.builds(ValueError, st.text(max_size=3)),
    ("numbers.positive_integers", "values"): st.one_of(SIZES, NUMBERS, st.none()),
    ("decoders.bits_per_dim", "log_prob"): tensors(kinds=["normal", "huge", "missing"]),
    ("distributions.Implicit", "value"): tensors(),
    ("distributions.Marginal", "mask"): tensors(kinds=["booleans"]),
}
BY_ANNOTATION = {
    "int": COUNTS,
    "int | None": st.one_of(st.none(), COUNTS),
    "float": NUMBERS,
    "float | None": st.one_of(st.none(), NUMBERS),
    "bool": st.booleans(),
    "str": st.sampled_from(["", "a"]),
    "Tensor": tensors(),
    "Shape": SHAPES,
    "Sequence[int]": SIZES,
    "Tensor | None": st.one_of(st.none(), tensors()),
    "torch.Tensor": tensors(),
    "torch.Tensor | None": st.one_of(st.none(), tensors()),
    "torch.Tensor | int | float | bool | None": st.one_of(st.none(), tensors()),
    "tuple[int, ...]": SIZES,
}
SOME = st.booleans()


# Numbers of draws and of steps that a default would make too many.
SMALL = {
    "log_likelihood": {"num_samples": 3},
    "inference.ais": {"num_chains": 2, "num_temperatures": 3},
    "inference.bdmc": {"num_chains": 2, "num_temperatures": 3},
    "inference.to_arviz": {"num_samples": 2},
    "inference.repaired_log_likelihood": {"num_samples": 3, "num_pilot": 3},
    "compare.compare": {"num_samples": 3},
    "inference.latent_report": {"num_samples": 3},
    "inference.impute": {"num_samples": 3},
    "inference.denoise": {"num_samples": 3},
    "judge.train_classifier": {"epochs": 1, "progress": False},
    "disentanglement.dci": {"num_trees": 2},
    "decoders.LogisticMixture": {"num_components": 2, "num_levels": 4},
    "decoders.Categorical": {"num_levels": 4},
    "inference.normalize_gradients": {},
    "plots.manifold": {"side": 3},
    "plots.traversals": {"steps": 3, "num_coordinates": 2},
    **{f"nn.{n}": {"channels": 2, "num_layers": 2} for n in ("PixelCNN", "GatedPixelCNN", "PixelRNN")},
    "nn.PixelCNNPlusPlus": {"channels": 2, "num_blocks": 1, "num_scales": 2},
    "nn.ResidualConvNet": {"channels": 2, "num_blocks": 1},
    "nn.ConvNet": {"channels": (2,), "hidden": (4,)},
    "nn.DeconvNet": {"channels": (2,), "hidden": (4,)},
    "nn.DCGANGenerator": {"channels": (2,)},
    "nn.DCGANDiscriminator": {"channels": (2,)},
}


def strategy(function, parameter):
    if parameter.kind is parameter.VAR_KEYWORD:
        return st.none()
    annotation = str(parameter.annotation)
    annotation = parameter.annotation.__name__ if isinstance(parameter.annotation, type) else annotation
    for table, key in (
        (BY_FUNCTION, (function, parameter.name)),
        (BY_NAME, parameter.name),
        (BY_ANNOTATION, annotation),
    ):
        if key in table:
            return table[key]
    raise LookupError(f"{function} has a parameter {parameter.name} of type {annotation}: add it to the tables.")
