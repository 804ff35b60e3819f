"""Models and their parts by the names that the command line uses."""

from ppgen.catalogue.parts import DECODERS, POSTERIORS, PRIORS, Part, lookup
from ppgen.catalogue.recipe import MODELS, Model, Recipe, pseudo_inputs, settings_of

__all__ = [
    "DECODERS", "MODELS", "POSTERIORS", "PRIORS", "Model", "Part", "Recipe", "lookup", "pseudo_inputs", "settings_of",
]  # fmt: skip
