"""Programs with the structure of Pyro's published examples, as they are written there.

Names of sites, plates, ``pyro.module`` calls and ``infer`` dictionaries are those of the examples; sizes are small.
"""

from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, config_enumerate
from torch import nn

from ppgen.inference import log_weights
from ppgen.models import Custom

PIXELS, Z = 12, 2


def mlp(*sizes: int) -> nn.Sequential:
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.Softplus())]
    return nn.Sequential(*layers[:-1])


def pyros_mean(pair, *batch, num_particles=7, nesting=1, objective=Trace_ELBO):
    """The ELBO of all data together, as Pyro has it, from the draws that follow this seed."""
    torch.manual_seed(3)
    loss = objective(num_particles=num_particles, vectorize_particles=num_particles > 1, max_plate_nesting=nesting)
    with torch.no_grad():
        return -loss.loss(pair.model, pair.guide, *batch)


def our_mean(pair, *batch, num_particles=7):
    torch.manual_seed(3)
    with torch.no_grad():
        return log_weights(pair, *batch, num_samples=num_particles).mean(0).sum().item()


class Encoder(nn.Module):
    def __init__(self, in_features):
        super().__init__()
        self.hidden, self.loc, self.log_scale = mlp(in_features, 8), nn.Linear(8, Z), nn.Linear(8, Z)

    def forward(self, x):
        hidden = nn.functional.softplus(self.hidden(x.reshape(-1, x.shape[-1])))
        return self.loc(hidden), self.log_scale(hidden).exp()


class VAE(nn.Module):
    """The variational autoencoder: modules by name, sites ``latent`` and ``obs``, probabilities from a sigmoid."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(PIXELS), nn.Sequential(mlp(Z, 8, PIXELS), nn.Sigmoid())

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], Z, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], Z, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder.forward(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, PIXELS))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


class SSVAE(nn.Module):
    """The semi-supervised M2: a plate without a size, a class that is observed or enumerated in the guide."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.encoder_y = nn.Sequential(mlp(PIXELS, 8, self.classes), nn.Softmax(-1))
        self.encoder_z = mlp(PIXELS + self.classes, 8, 2 * Z)
        self.decoder = nn.Sequential(mlp(Z + self.classes, 8, PIXELS), nn.Sigmoid())

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        with pyro.plate("data"):
            prior_loc, prior_scale = xs.new_zeros([batch_size, Z]), xs.new_ones([batch_size, Z])
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            alpha_prior = xs.new_ones([batch_size, self.classes]) / (1.0 * self.classes)
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            loc = self.decoder(joined(zs, ys))
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                alpha = self.encoder_y(xs)
                ys = pyro.sample("y", dist.OneHotCategorical(alpha))
            loc, log_scale = self.encoder_z(joined(xs, ys)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def joined(*parts):
    """Concatenation that broadcasts, as the example's network has it."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


class CVAE(nn.Module):
    """The conditional one: it picks the missing pixels by a boolean index, which no plate of particles survives."""

    def __init__(self):
        super().__init__()
        self.baseline_net = nn.Sequential(mlp(PIXELS, 8, PIXELS), nn.Sigmoid())
        self.prior_net, self.recognition_net = Encoder(PIXELS), Encoder(PIXELS)
        self.generation_net = nn.Sequential(mlp(Z, 8, PIXELS), nn.Sigmoid())

    @staticmethod
    def together(xs, ys):
        both = xs.clone()
        both[xs == -1] = ys[xs == -1]
        return both.view(-1, PIXELS)

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        batch_size = xs.shape[0]
        with pyro.plate("data"):
            with torch.no_grad():
                y_hat = self.baseline_net(xs).view(xs.shape)
            prior_loc, prior_scale = self.prior_net(self.together(xs, y_hat))
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            loc = self.generation_net(zs)
            if ys is not None:
                mask_loc = loc[(xs == -1).view(-1, PIXELS)].view(batch_size, -1)
                mask_ys = ys[xs == -1].view(batch_size, -1)
                pyro.sample("y", dist.Bernoulli(mask_loc, validate_args=False).to_event(1), obs=mask_ys)
            else:
                pyro.deterministic("y", loc.detach())
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                y_hat = self.baseline_net(xs).view(xs.shape)
                loc, scale = self.prior_net(self.together(xs, y_hat))
            else:
                loc, scale = self.recognition_net(self.together(xs, ys))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


class DMM(nn.Module):
    """The deep Markov model: a latent a step, sequences of several lengths, masks inside scales for annealing."""

    notes, rnn_dim = 3, 5

    def __init__(self):
        super().__init__()
        self.emitter = nn.Sequential(mlp(Z, 6, self.notes), nn.Sigmoid())
        self.trans, self.combiner = mlp(Z, 6, 2 * Z), mlp(Z + self.rnn_dim, 6, 2 * Z)
        self.rnn = nn.RNN(self.notes, self.rnn_dim, nonlinearity="relu", batch_first=True)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(Z)), nn.Parameter(torch.zeros(Z))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, self.rnn_dim))

    def model(self, mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=1.0):
        T_max = mini_batch.size(1)
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(mini_batch.size(0), self.z_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, T_max + 1)):
                z_loc, z_scale = located(self.trans(z_prev))
                with poutine.scale(None, annealing_factor):
                    z_t = pyro.sample(
                        f"z_{t}",
                        dist.Normal(z_loc, z_scale).mask(mini_batch_mask[:, t - 1 : t]).to_event(1),
                    )
                emission_probs_t = self.emitter(z_t)
                pyro.sample(
                    f"obs_x_{t}",
                    dist.Bernoulli(emission_probs_t).mask(mini_batch_mask[:, t - 1 : t]).to_event(1),
                    obs=mini_batch[:, t - 1, :],
                )
                z_prev = z_t

    def guide(self, mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=1.0):
        T_max = mini_batch.size(1)
        pyro.module("dmm", self)
        h_0_contig = self.h_0.expand(1, mini_batch.size(0), self.rnn.hidden_size).contiguous()
        rnn_output, _ = self.rnn(mini_batch_reversed, h_0_contig)
        if isinstance(rnn_output, nn.utils.rnn.PackedSequence):
            rnn_output, _ = nn.utils.rnn.pad_packed_sequence(rnn_output, batch_first=True)
        rnn_output = backwards(rnn_output, mini_batch_seq_lengths)
        z_prev = self.z_q_0.expand(mini_batch.size(0), self.z_q_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, T_max + 1)):
                z_dist = dist.Normal(*located(self.combiner(joined(z_prev, rnn_output[:, t - 1, :]))))
                with poutine.scale(None, annealing_factor):
                    z_prev = pyro.sample(f"z_{t}", z_dist.mask(mini_batch_mask[:, t - 1 : t]).to_event(1))


def located(parameters):
    """A location and a scale."""
    loc, scale = parameters.chunk(2, -1)
    return loc, nn.functional.softplus(scale)


def backwards(sequences, lengths):
    """Each sequence from its own end to its start, zeros behind it."""
    steps = torch.arange(sequences.shape[1])
    index = (lengths[:, None] - 1 - steps).clamp(min=0)
    flipped = sequences.gather(1, index[..., None].expand_as(sequences))
    return torch.where(steps[None, :, None] < lengths[:, None, None], flipped, 0.0)


def sequences(n=5, steps=4):
    lengths = torch.tensor([4, 4, 3, 2, 1])[:n]
    mask = (torch.arange(steps) < lengths[:, None]).float()
    data = torch.bernoulli(torch.full((n, steps, DMM.notes), 0.4)) * mask[..., None]
    return data, backwards(data, lengths), mask, lengths


def images(n=6):
    return torch.bernoulli(torch.full((n, PIXELS), 0.5))


def incomplete(x):
    """The first half of each image hidden, as the example's data have it: −1 where the model is to fill in."""
    return torch.where(torch.arange(PIXELS) < PIXELS // 2, torch.tensor(-1.0), x)


def pair_of(program):
    """Without Custom it is a pair, too; its ``pyro.module`` calls then go to Pyro's global store."""
    return Custom(program.model, program.guide)


def enumerated(program):
    return Custom(program.model, config_enumerate(program.guide, "parallel", expand=True))


def cases():
    labels = torch.eye(SSVAE.classes)[[0, 1, 2, 0, 1, 2]]
    return {
        "vae": (pair_of(VAE()), (images(),)),
        "ss-vae with labels": (pair_of(SSVAE()), (images(), labels)),
        "ss-vae without": (pair_of(SSVAE()), (images(),)),
        "ss-vae enumerated": (enumerated(SSVAE()), (images(),)),
        "cvae": (pair_of(CVAE()), (incomplete(x := images()), x)),
        "dmm": (pair_of(DMM()), sequences()),
    }


NAMES = list(cases())
