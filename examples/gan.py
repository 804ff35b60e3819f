"""Two mixtures of known modes: what a GAN finds of them, and what a Wasserstein GAN with gradient penalty does."""

import sys
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ppgen import data, judge, models, nn, priors
from ppgen.inference import Adversarial, adversarial, sample, train

MODES = {"ring": data.ring_modes(), "grid": data.grid_modes()}
LOSSES = {"GAN": adversarial.nonsaturating(), "WGAN-GP": adversarial.wasserstein_gp(weight=0.1)}  # 0.1 as in its paper


def trained(x, loss, quick):
    """A model of points in the plane, of unit spread; the learning rate falls in three stages."""
    torch.manual_seed(0)
    gan = models.GAN(priors.StandardNormal(2), nn.MLP(2, 128, 128, 128, 2), nn.MLP(2, 128, 128, 128, 1))
    adam = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9), fused=True)
    steps = min(loss.critic_steps, 3)
    step = Adversarial(gan, loss, critic_steps=steps, generator_optimizer=adam, critic_optimizer=adam)
    for stage, lr in enumerate((1e-3, 3e-4, 1e-4)):
        for optimizer in step.optimizers.values():
            optimizer.param_groups[0]["lr"] = lr
        # As many steps of the generator under either loss, however many the critic takes for each.
        epochs = 1 if quick else 5 * steps
        train(step, x[:2000] if quick else x, epochs=epochs, batch_size=250, seed=stage, progress=False)
    return gan


def main(quick: bool, out: Path) -> None:
    figure = Figure(figsize=(10.5, 7), layout="constrained")
    for row, (name, modes) in zip(figure.subplots(2, 3), MODES.items(), strict=True):
        dataset = data.load(name)
        scale = dataset.train.std()
        drawn = {"data": dataset.test[:2500]}
        for kind, loss in LOSSES.items():
            drawn[kind] = scale * sample(trained(dataset.train / scale, loss, quick), 2500, seed=0)
        for axes, (kind, points) in zip(row, drawn.items(), strict=True):
            coverage = judge.mode_coverage(points, *modes)
            print(f"{name}, {kind}: {coverage}")
            axes.scatter(*points.T.numpy(), s=2, alpha=0.4, linewidths=0)
            axes.set_title(
                f"{kind}: {coverage.found} of {coverage.num_modes} modes, {coverage.high_quality:.0%} of high quality",
                fontsize=10,
            )
            limit = 1.3 * float(modes.centres.abs().max())
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "gan.png"))
