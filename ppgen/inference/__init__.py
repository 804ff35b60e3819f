"""Training and evaluation of any pair: this package sees ``.model`` and ``.guide`` and nothing else."""

from ppgen.inference import adversarial
from ppgen.inference.adversarial_step import Adversarial
from ppgen.inference.aggregate import energy_distance, mutual_information
from ppgen.inference.annealed import AnnealedEstimate, ais
from ppgen.inference.bidirectional import Bounds, bdmc
from ppgen.inference.em import EM
from ppgen.inference.export import to_arviz
from ppgen.inference.fit import fit
from ppgen.inference.latents import LatentReport, latent_report
from ppgen.inference.likelihood import Estimate, log_likelihood
from ppgen.inference.losses import elbo, iwae
from ppgen.inference.missing import denoise, impute
from ppgen.inference.normalized import normalize_gradients
from ppgen.inference.pathwise import dreg, renyi, sticking_the_landing, stratified
from ppgen.inference.predict import decode, encode, reconstruct, sample
from ppgen.inference.progress import History
from ppgen.inference.proposals import RepairedEstimate, repaired_log_likelihood
from ppgen.inference.schedules import warmup
from ppgen.inference.semisupervised import classify, semi_supervised
from ppgen.inference.svi import SVI
from ppgen.inference.train import train
from ppgen.inference.weights import log_weights

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
