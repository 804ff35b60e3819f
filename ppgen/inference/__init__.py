"""Training and evaluation of any pair: this package sees ``.model`` and ``.guide`` and nothing else."""

from ppgen.inference.evaluation.aggregate import energy_distance, mutual_information
from ppgen.inference.evaluation.annealed import AnnealedEstimate, ais
from ppgen.inference.evaluation.bidirectional import Bounds, bdmc
from ppgen.inference.evaluation.export import to_arviz
from ppgen.inference.evaluation.latents import LatentReport, latent_report
from ppgen.inference.evaluation.likelihood import Estimate, log_likelihood
from ppgen.inference.evaluation.proposals import RepairedEstimate, repaired_log_likelihood
from ppgen.inference.execution.distributed import processes
from ppgen.inference.losses import adversarial
from ppgen.inference.losses.elbo import elbo
from ppgen.inference.losses.iwae import iwae, renyi
from ppgen.inference.losses.pathwise import dreg, sticking_the_landing, stratified
from ppgen.inference.losses.schedules import warmup
from ppgen.inference.losses.semisupervised import semi_supervised
from ppgen.inference.predictions.classify import classify
from ppgen.inference.predictions.missing import denoise, impute
from ppgen.inference.predictions.predict import decode, encode, reconstruct, sample
from ppgen.inference.programs.weights import log_weights
from ppgen.inference.training.adversarial import Adversarial
from ppgen.inference.training.em import EM
from ppgen.inference.training.fit import fit
from ppgen.inference.training.normalized import normalize_gradients
from ppgen.inference.training.progress import History
from ppgen.inference.training.svi import SVI
from ppgen.inference.training.train import train

__all__ = [
    "EM",
    "SVI",
    "Adversarial",
    "AnnealedEstimate",
    "Bounds",
    "Estimate",
    "History",
    "LatentReport",
    "RepairedEstimate",
    "adversarial",
    "ais",
    "bdmc",
    "classify",
    "decode",
    "denoise",
    "dreg",
    "elbo",
    "encode",
    "energy_distance",
    "fit",
    "impute",
    "iwae",
    "latent_report",
    "log_likelihood",
    "log_weights",
    "mutual_information",
    "normalize_gradients",
    "processes",
    "reconstruct",
    "renyi",
    "repaired_log_likelihood",
    "sample",
    "semi_supervised",
    "sticking_the_landing",
    "stratified",
    "to_arviz",
    "train",
    "warmup",
]
