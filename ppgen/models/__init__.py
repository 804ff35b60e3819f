"""Model/guide pairs, one family a file."""

from ppgen.models.vae import VAE
from ppgen.pair import Custom

__all__ = ["VAE", "Custom"]
