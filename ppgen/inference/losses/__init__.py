"""Training objectives: ``loss(model, guide, *batch) -> scalar``; and those of an adversarial game, of scores."""
