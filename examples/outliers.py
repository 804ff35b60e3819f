"""p(x) as a score for outliers: what a classifier is sure of, and the model says is improbable.

A classifier p(y | x) divides all images among its classes, those too that are none: far from the data it is often surer
than near them. p(x) tells them apart. Scores are −log p(x) and, of the classifier, one minus its largest probability;
AUROC is the probability that an outlier has the larger one (0.5: no idea, 1: always).

And where p(x) fails (Do Deep Generative Models Know What They Don't Know?, Nalisnick et al., 2019,
https://arxiv.org/abs/1810.09136): an image that is simpler than the data, such as a patch of sky under a model of
textures, is more probable than they are, pixel by pixel. A density is high there, and yet hardly ever drawn from.

Digits of scikit-learn by default; for MNIST, some minutes: python outliers.py --data mnist
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from torch.nn.functional import avg_pool2d, interpolate

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import elbo, fit, log_likelihood

SETTINGS = {"digits": (80, 128, 8), "mnist": (15, 300, 40)}  # epochs, hidden units, coordinates of z


def patches(side, top):
    """Grey patches of two photographs, in levels up to the given one, and how much each varies."""
    grey = [torch.tensor(image).float().mean(-1)[None, None] for image in load_sample_images().images]
    smaller = [avg_pool2d(picture, 2)[0, 0] for picture in grey]
    every = torch.cat([p.unfold(0, side, 4).unfold(1, side, 4).flatten(0, 1) for p in smaller])[:, None]
    return (every * (top / 255)).round().to(torch.uint8), every.std((1, 2, 3))


def main(quick: bool, out: Path, name: str = "digits") -> None:
    digits = data.load(name, binarize="none")
    x, shape, levels = digits.test[:1000], digits.image_shape, digits.num_levels
    epochs, hidden, d = SETTINGS[name]

    def density(train):
        torch.manual_seed(0)
        vae = models.VAE(
            priors.StandardNormal(d),
            decoders.DiscretizedLogistic(
                nn.GatedMLP(d, hidden, hidden, decoders.DiscretizedLogistic.outputs_shape(shape)), levels
            ),
            posteriors.DiagNormal(nn.GatedMLP(shape, hidden, hidden, 2 * d, levels=levels)),
        )
        fit(vae, train, loss=elbo(analytic_kl=True), epochs=1 if quick else epochs, seed=0, progress=False)
        return lambda images: log_likelihood(vae, images, num_samples=10 if quick else 100).values

    def auroc(inside, outside):
        """How often a score is larger outside than inside."""
        return roc_auc_score([0] * len(inside) + [1] * len(outside), torch.cat([inside, outside]))

    classifier = MLPClassifier((hidden,), max_iter=500, tol=1e-3, random_state=0)
    classifier.fit(digits.train.flatten(1) / levels, digits.train_labels)

    def classify(images):
        return torch.as_tensor(classifier.predict_proba(images.flatten(1) / levels)).max(1)

    log_p, (sure, _) = density(digits.train), classify(x)
    photographs, contrast = patches(shape[-1], levels - 1)
    others = {
        "patches of photographs": photographs[torch.randperm(len(photographs))[: len(x)]],
        "digits turned by 90°": x.rot90(1, (-2, -1)),
        "digits upside down": x.flip(-2),
        "negatives of digits": (levels - 1) - x,
    }
    if name == "mnist":
        faces = data.load("freyfaces", binarize="none").test.float()
        others["faces"] = interpolate(faces, shape[1:], mode="bilinear").to(torch.uint8)
    inside, shown = log_p(x), {}
    print(f"digits: {(sure > 0.99).double().mean():.0%} classified with more than 99 %, log p(x) {inside.mean():.0f}")
    print("AUROC against digits      p(x)  classifier  sure of  log p(x)")
    for kind, images in ({"digits": x} | others).items():
        scores, (confidence, label) = log_p(images), classify(images)
        if images is not x:
            row = auroc(-inside, -scores), auroc(-sure, -confidence), (confidence > 0.99).double().mean()
            print(f"{kind:<24}{row[0]:6.3f}{row[1]:12.3f}{row[2]:9.0%}{scores.mean():10.0f}")
        for i in confidence.argsort(descending=images is not x)[:: 1 if images is not x else len(x) // 8][:8]:
            title = f"{kind}, no. {i}:\n{label[i]} to {confidence[i]:.2%}, log p(x) = {scores[i]:.1f}"
            shown[title] = images[i : i + 1] / (levels - 1)

    textured = photographs[contrast > contrast.median()]
    order = torch.randperm(len(textured))
    held_out, smooth = textured[order[:300]], photographs[contrast.argsort()[:: len(contrast) // 600][:300]]
    log_p = density(textured[order[300:]])
    inside, outside = log_p(held_out), log_p(smooth)
    print(f"a model of textures, against smooth patches: AUROC of p(x) {auroc(-inside, -outside):.3f}, as they are")
    print(f"simpler: log p(x) {outside.mean():.0f}, and {inside.mean():.0f} of textures. Here p(x) is no score.")
    for kind, images, scores in (("textured", held_out, inside), ("smooth", smooth, outside)):
        for i in range(4):
            shown[f"{kind} patch, no. {i}\nlog p(x) = {scores[i]:.1f}"] = images[i : i + 1] / (levels - 1)
    plots.sheet(shown, out, columns=8, per_row=1)
    print(f"what the classifier is surest of, and log p(x); last row: the model of textures in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Find outliers by p(x).")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    parser.add_argument("out", nargs="?", type=Path, default=Path("outliers.png"))
    arguments = parser.parse_args()
    main(arguments.quick, arguments.out, arguments.data)
