"""A class that is known of few images is one more latent (M2): few labels make a classifier, and z holds the style.

Picture: each row takes the style of the test image on its left, the mean of q(z | x, y), and writes every class in it.
"""

import sys
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

from ppgen import data, decoders, models, nn, plots, posteriors, priors
from ppgen.inference import classify, decode, encode, fit, semi_supervised

LATENT, C = 6, 10


def main(quick: bool, out: Path) -> None:
    digits = data.load("digits")
    grey, y, x_test = digits.train.probs.flatten(1), digits.train_labels, digits.test.flatten(1)
    labelled = torch.cat([(y == c).nonzero()[:10, 0] for c in range(C)])  # ten of each class keep their label
    missing = torch.ones(len(y), dtype=torch.bool).index_fill(0, labelled, False).nonzero()[:, 0]
    times = 4  # the labelled are repeated, so that each batch has some
    x = data.DynamicBinarization(grey[torch.cat([missing, labelled.repeat(times)])])
    labels = torch.cat([torch.full_like(missing, -1), y[labelled].repeat(times)])
    share = times * len(labelled) / len(labels)

    torch.manual_seed(0)
    m2 = models.SemiSupervisedVAE(
        priors.StandardNormal(LATENT),
        decoders.Bernoulli(nn.MLP(LATENT + C, 128, 64)),  # p(x | z, y)
        posteriors.DiagNormal(nn.MLP(64 + C, 128, 2 * LATENT)),  # q(z | x, y)
        classifier=nn.MLP(64, 128, C),  # q(y | x)
        num_classes=C,
    )
    fit(m2, (x, labels), loss=semi_supervised(5 / share), epochs=2 if quick else 100, seed=0, progress=False)

    alone = LogisticRegression(max_iter=1000).fit(grey[labelled].numpy(), y[labelled].numpy())
    wrong = 100 * float((torch.as_tensor(alone.predict(x_test.numpy())) != digits.test_labels).double().mean())
    print(f"{len(labelled)} labels alone, logistic regression: {wrong:.1f} % of the test images are misread")
    for name, num_samples in (("q(y | x)", None), ("p(y | x)", 10 if quick else 200)):
        found = classify(m2, x_test, num_samples=num_samples).argmax(-1)
        wrong = 100 * float((found != digits.test_labels).double().mean())
        print(f"and {len(missing)} images without a label, {name} of M2: {wrong:.1f} %")

    shown = data.load("digits", binarize="none").test[:10].flatten(1) / 16
    z = encode(m2, shown, digits.test_labels[:10])["z"]
    written = decode(m2, {"z": z.repeat_interleave(C, 0)}, torch.arange(C).repeat(10)).reshape(10, C, 64)
    sheet = torch.cat([shown.unsqueeze(1), torch.ones(10, 1, 64), written], 1).reshape(-1, 1, 8, 8)
    plots.images(sheet, out, columns=C + 2, title="left: test images; then their z under each class")


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "semi_supervised.png"))
