"""Training objectives: ``loss(model, guide, *batch) -> scalar``."""
