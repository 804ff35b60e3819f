"""Model/guide pairs, one family a file."""

from ppgen.models.autoencoder import Autoencoder
from ppgen.models.bigan import BiGAN
from ppgen.models.custom import Custom
from ppgen.models.density import DensityNetwork, ExplicitDensity
from ppgen.models.factor import FactorAnalysis, ProbabilisticPCA
from ppgen.models.gan import ACGAN, GAN
from ppgen.models.hierarchical import HierarchicalVAE
from ppgen.models.ladder import LadderVAE
from ppgen.models.mixture import GaussianMixture
from ppgen.models.semisupervised import SemiSupervisedVAE, StackedSemiSupervisedVAE
from ppgen.models.vae import VAE
from ppgen.models.vaegan import VAEGAN
from ppgen.models.vqvae import VQVAE, HierarchicalVQVAE

__all__ = [
    "ACGAN",
    "GAN",
    "VAE",
    "VAEGAN",
    "VQVAE",
    "Autoencoder",
    "BiGAN",
    "Custom",
    "DensityNetwork",
    "ExplicitDensity",
    "FactorAnalysis",
    "GaussianMixture",
    "HierarchicalVAE",
    "HierarchicalVQVAE",
    "LadderVAE",
    "ProbabilisticPCA",
    "SemiSupervisedVAE",
    "StackedSemiSupervisedVAE",
]
