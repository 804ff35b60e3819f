"""Vector quantisation: a codebook, the nearest code of a vector, and how the codes learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppgen.numbers import finite_number, positive_integer

BLOCK = 65_536  # vectors whose distances to all codes are in memory at once


class VectorQuantizer(nn.Module):
    r"""Codebook of K vectors, and the code that is nearest to each vector of a grid.

    .. math:: z_{ij} = \arg\min_k \lVert h_{ij} - e_k \rVert^2, \qquad e(z)_{ij} = e_{z_{ij}}

    Nothing flows through the arg min. :meth:`straight_through` hands the gradient of e on to h as it is, and
    :meth:`penalty` draws the two together; where the codebook follows an average, only the second of its terms is left:

    .. math:: \lVert \mathrm{sg}[h] - e \rVert^2 + \beta \, \lVert h - \mathrm{sg}[e] \rVert^2

    In training mode, with gradients enabled, each ``forward`` moves the codebook, as a batch normalisation's statistics
    move: with n_k vectors of the batch nearest to code k,

    .. math::
        N_k \leftarrow \gamma N_k + (1 - \gamma) \, n_k, \qquad
        m_k \leftarrow \gamma m_k + (1 - \gamma) \sum_{ij: z_{ij} = k} h_{ij}, \qquad
        e_k = m_k / N_k

    Both averages start at 0, so that their ratio needs no correction for it, and a code that is not used stays where it
    is. A code is dead when its share of the use falls below ``revival`` times the uniform share 1 / K; it is put on a
    random vector of the batch, with a uniform share to live on. At the first batch all unused codes are dead, which
    places the codebook among the data.

    References:
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017),
        https://arxiv.org/abs/1711.00937
        Jukebox: A Generative Model for Music (Dhariwal et al., 2020: random restarts), https://arxiv.org/abs/2005.00341

    Args:
        codebook_size: K.
        code_dim: D, numbers of a code.
        ema: whether the codebook follows the averages; otherwise it is a parameter that the first term of the penalty
            trains.
        decay: γ, of the averages; the use of the codes is counted with it in either case.
        commitment: β.
        revival: the share of the uniform share below which a code is dead; 0 for no revival.

    Shape:
        grids of vectors (\*, D, H, W) to codes (\*, H, W), integers; a vector can be the grid (D, L, 1).

    Raises:
        ValueError: a size that is not a positive whole number, a decay or revival outside [0, 1), a negative
            commitment, grids of other vectors, or codes outside the codebook.

    Example:
        >>> quantizer = VectorQuantizer(512, 64)
        >>> codes = quantizer(torch.randn(10, 64, 7, 7))
        >>> codes.shape, quantizer.embed(codes).shape
        (torch.Size([10, 7, 7]), torch.Size([10, 64, 7, 7]))
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        *,
        ema: bool = True,
        decay: float = 0.99,
        commitment: float = 0.25,
        revival: float = 0.01,
    ) -> None:
        super().__init__()
        self.codebook_size = positive_integer("codebook_size", codebook_size)
        self.code_dim = positive_integer("code_dim", code_dim)
        for name, value in (("decay", decay), ("revival", revival)):
            if finite_number(name, value, least=0) >= 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}.")
        self.ema = ema
        self.decay = decay
        self.commitment = finite_number("commitment", commitment, least=0)
        self.revival = revival
        codebook = torch.empty(codebook_size, code_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if ema:
            self.register_buffer("codebook", codebook)
        else:
            self.codebook = nn.Parameter(codebook)
        self.register_buffer("counts", torch.zeros(codebook_size))  # N
        self.register_buffer("sums", torch.zeros(codebook_size, code_dim))  # m

    def forward(self, h: Tensor) -> Tensor:
        """The nearest codes of a grid of vectors; in training mode, the codebook then moves."""
        if h.dim() < 3 or h.shape[-3] != self.code_dim:
            raise ValueError(
                f"VectorQuantizer(code_dim={self.code_dim}) takes grids of vectors (*, {self.code_dim}, H, W), but was "
                f"given a tensor of shape {tuple(h.shape)}: give the encoder the output shape ({self.code_dim}, H, W)."
            )
        grid = h.detach().movedim(-3, -1)  # (*, H, W, D)
        vectors = grid.reshape(-1, self.code_dim)
        codes = self._nearest(vectors)
        if self.training and torch.is_grad_enabled():
            self._learn(vectors, codes)
        return codes.reshape(grid.shape[:-1])

    @torch.no_grad()
    def _nearest(self, vectors: Tensor) -> Tensor:
        # |h - e|² without |h|², which all codes share; in blocks, so that memory stays bounded for large grids. Counted
        # from the codes' mean, since far from zero the squares would drown the differences.
        origin = self.codebook.mean(0)
        codes = self.codebook - origin
        length = codes.square().sum(-1)
        blocks = (v - origin for v in vectors.split(BLOCK))
        return torch.cat([torch.addmm(length, v, codes.T, alpha=-2).argmin(-1) for v in blocks])

    def embed(self, codes: Tensor) -> Tensor:
        r"""The vectors of codes (\*, H, W), integers of any type: a grid (\*, D, H, W)."""
        codes = codes.long()
        if not self.training and codes.numel() and not 0 <= codes.min() <= codes.max() < self.codebook_size:
            raise ValueError(
                f"VectorQuantizer has {self.codebook_size} codes, 0 to {self.codebook_size - 1}, but was given codes "
                f"from {codes.min()} to {codes.max()}: a prior of codes must have as many categories as the codebook."
            )
        return functional.embedding(codes, self.codebook).movedim(-1, -3)

    def straight_through(self, h: Tensor, codes: Tensor) -> Tensor:
        """The vectors of the codes, whose gradient is passed on to ``h`` as it is."""
        return self.embed(codes).detach() + (h - h.detach())

    def penalty(self, h: Tensor, codes: Tensor) -> Tensor:
        r"""The codebook's and the encoder's squared distances, summed over the grid: shape (\*,)."""
        e = self.embed(codes)
        distance = self.commitment * (h - e.detach()).square()
        if not self.ema:
            distance = distance + (h.detach() - e).square()
        return distance.sum((-3, -2, -1))

    @property
    def perplexity(self) -> float:
        """The exponential of the entropy of the codes' average use: how many are in use, K if all are alike.

        NaN before any use was counted.
        """
        share = self.counts / self.counts.sum()
        return torch.special.entr(share).sum().exp().item()

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor) -> None:
        """Takes the use of a batch into the averages, moves the codes, and revives the dead."""
        if not vectors.isfinite().all():  # a loss that is not finite ends the run: leave the last good codebook
            return
        used = torch.bincount(codes, minlength=self.codebook_size).to(vectors.dtype)
        self.counts.lerp_(used, 1 - self.decay)
        if self.ema:
            self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, vectors), 1 - self.decay)
            moved = used > 0  # the others' averages shrink alike, and at last below what a number can hold
            self.codebook[moved] = self.sums[moved] / self.counts[moved].unsqueeze(-1)
        uniform = self.counts.mean()
        dead = (self.counts < self.revival * uniform) & (used == 0)
        if dead.any():
            count = int(dead.sum())
            # Each on a vector of its own, as long as there are enough.
            chosen = torch.randperm(len(vectors), device=vectors.device).repeat(-(-count // len(vectors)))[:count]
            self.codebook[dead] = vectors[chosen]
            self.counts[dead] = uniform
            self.sums[dead] = uniform * vectors[chosen]

    def extra_repr(self) -> str:
        return (
            f"codebook_size={self.codebook_size}, code_dim={self.code_dim}, ema={self.ema}, decay={self.decay}, "
            f"commitment={self.commitment}, revival={self.revival}"
        )
