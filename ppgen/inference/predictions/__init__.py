"""What a trained pair is used for: samples, codes, classes, what was missing."""
