"""A prior and a flow posterior of your own, used by name: ppgen compare --prior parts_of_your_own:HeavyTails ...

A part is a module whose forward(*context) returns a distribution. A prior is made as MyPrior(latent_dim), a posterior
as MyPosterior(net, latent_dim), behind a network with MyPosterior.num_outputs(latent_dim) outputs.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.distributions import AffineTransform, ComposeTransform, Independent, Normal, SigmoidTransform, StudentT

from ppgen.distributions import NormalizingFlow


class HeavyTails(nn.Module):
    """Independent Student-t coordinates with learned degrees of freedom."""

    def __init__(self, latent_dim):
        super().__init__()
        self.log_df = nn.Parameter(torch.full((latent_dim,), 1.6))

    def forward(self, *context):
        return Independent(StudentT(1 + self.log_df.exp()), 1)


class Squashed(nn.Module):
    """A Gaussian through a sigmoid, stretched to (-4, 4): z = 8 · sigmoid(μ(x) + σ(x) · ε) - 4."""

    def __init__(self, net, latent_dim):
        super().__init__()
        self.net = net

    @staticmethod
    def num_outputs(latent_dim):
        return 2 * latent_dim

    def forward(self, *context):
        loc, log_scale = self.net(*context).chunk(2, -1)
        noise = Independent(Normal(loc, log_scale.exp()), 1)
        return NormalizingFlow(noise, ComposeTransform([SigmoidTransform(), AffineTransform(-4.0, 8.0)]))


def main(quick: bool, out: Path) -> None:
    from ppgen import cli

    sys.path.insert(0, str(Path(__file__).parent))
    options = ["--epochs", "3", "--warmup", "0", "--patience", "0", "--num-samples", "50"] if quick else []
    sys.argv = ["ppgen", "compare", "--prior", "standard,parts_of_your_own:HeavyTails", *options]
    sys.argv += ["--posterior", "diagonal,parts_of_your_own:Squashed"]
    with TemporaryDirectory() as folder:
        sys.argv += ["--out", folder]
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise
        out.write_bytes(Path(folder, "comparison.png").read_bytes())


if __name__ == "__main__":
    main("--quick" in sys.argv, Path(sys.argv[-1] if sys.argv[-1].endswith(".png") else "parts_of_your_own.png"))
