r"""The judging of samples: what can be measured of a model that has no likelihood, and of any other beside it.

All measures compare two tensors, data and samples, so they work for whatever can be sampled. They look at features:
the data themselves, what a function of the user's makes of them, or the last hidden layer of a small classifier that
:func:`train_classifier` trains on the data set. Every result carries the numbers of data and samples that it rests on,
since all of them depend on these.
"""

from ppgen.judge.classifier import Classifier, ClassShares, class_shares, train_classifier
from ppgen.judge.measures import Score, density_coverage, frechet_distance, kernel_distance, precision_recall
from ppgen.judge.modes import ModeCoverage, mode_coverage, stacked_coverage
from ppgen.judge.report import SampleReport, sample_report

__all__ = [
    "ClassShares",
    "Classifier",
    "ModeCoverage",
    "SampleReport",
    "Score",
    "class_shares",
    "density_coverage",
    "frechet_distance",
    "kernel_distance",
    "mode_coverage",
    "precision_recall",
    "sample_report",
    "stacked_coverage",
    "train_classifier",
]
