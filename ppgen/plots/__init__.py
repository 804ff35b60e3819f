"""What people would rather look at than read."""

from ppgen.plots.latents import interpolations, traversals
from ppgen.plots.pictures import comparison, images, is_picture, losses, manifold, sheet

__all__ = ["comparison", "images", "interpolations", "is_picture", "losses", "manifold", "sheet", "traversals"]
