r"""All measures of samples at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppgen.judge.classifier import Classifier, ClassShares, class_shares
from ppgen.judge.measures import (
    Features,
    Score,
    as_rows,
    density_coverage,
    features_of,
    frechet_distance,
    kernel_distance,
    precision_recall,
)

__all__ = ["SampleReport", "sample_report"]


@dataclass(frozen=True)
class SampleReport:
    """What can be said of a model by its samples.

    Attributes:
        scores: precision, recall, density, coverage, Fréchet distance and kernel distance, by name.
        classes: what a classifier sees in the samples, where there is one.
    """

    scores: dict[str, Score]
    classes: ClassShares | None = None

    def summary(self) -> dict[str, Any]:
        """The figures as plain numbers, for JSON."""
        some = next(iter(self.scores.values()))
        figures: dict[str, Any] = {name.replace(" ", "_"): score.value for name, score in self.scores.items()}
        figures["kernel_distance_standard_error"] = self.scores["kernel distance"].standard_error
        if self.classes is not None:
            figures |= {"confident": self.classes.confident, "class_shares": self.classes.shares.tolist()}
        return figures | {"num_data": some.num_real, "num_samples": some.num_generated}

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.scores.values(), *([self.classes] if self.classes else [])]))


def sample_report(
    real: Any, generated: Any, *, classifier: Classifier | None = None, features: Features | None = None
) -> SampleReport:
    """All measures of samples against data.

    Args:
        real: data, test data best: a model that repeats its training data should not be rewarded.
        generated: samples, best as many as there are data, of the same kind.
        classifier: whose last hidden layer are the features, and whose classes are counted.
        features: from rows to vectors, in place of the classifier's; without either, the rows themselves.

    Shape:
        real: (N, *event), generated: (M, *event).

    Raises:
        ValueError: what the measures refuse.

    Example:
        >>> import torch
        >>> report = sample_report(torch.randn(100, 2), torch.randn(50, 2))
        >>> report.scores["coverage"].num_generated
        50
    """
    real, generated = as_rows("real", real), as_rows("generated", generated)
    if features is None and classifier is not None:
        features = classifier.features
    found = features_of(real, generated, features, at_least=2)  # once for all of them
    scores = [
        *precision_recall(*found),
        *density_coverage(*found),
        frechet_distance(*found),
        kernel_distance(*found),
    ]
    classes = None if classifier is None else class_shares(classifier, generated)
    return SampleReport({score.name: score for score in scores}, classes)
