"""What a trained pair is worth: likelihoods with their errors, bounds, the use of its latents."""
