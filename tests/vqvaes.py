"""Small VQ-VAEs of one level and of several, their data, and what trains and watches them."""

import torch

from ppgen import decoders, models, nn

IMAGE, GRID = (1, 5, 6), (3, 3, 3)
K = 6


def small(prior=None, **options):
    return models.VQVAE(
        nn.ResidualConvNet(IMAGE, GRID, channels=8, num_blocks=1),
        nn.VectorQuantizer(K, GRID[0], **options),
        decoders.Bernoulli(nn.ResidualConvNet(GRID, IMAGE, channels=8, num_blocks=1)),
        prior,
    )


def levels(num_levels=2, y=()):
    """Grids of 3 × 3, 2 × 2 and 1 × 1, each encoder and the decoder seeing all codes above."""
    grids = [(3, 3, 3), (4, 2, 2), (2, 1, 1)][:num_levels]
    small_net = {"channels": 8, "num_blocks": 1}
    return models.HierarchicalVQVAE(
        [nn.ResidualConvNet(IMAGE, g, context_shapes=[*grids[i + 1 :], *y], **small_net) for i, g in enumerate(grids)],
        [nn.VectorQuantizer(K + i, g[0]) for i, g in enumerate(grids)],
        decoders.Bernoulli(nn.ResidualConvNet(grids[0], IMAGE, context_shapes=[*grids[1:], *y], **small_net)),
    )


def images(n=20):
    return torch.bernoulli(torch.full((n, *IMAGE), 0.4))


def _adam(parameters):
    return torch.optim.Adam(parameters, lr=5e-3)


def pixelcnn(shape, num_codes, context_shapes=(), channels=8, num_layers=2):
    """An autoregressive prior of grids of codes."""
    net = nn.GatedPixelCNN(
        (1, *shape),
        (num_codes, *shape),
        channels=channels,
        num_layers=num_layers,
        first_kernel_size=3,
        categories=num_codes,
        context_shapes=context_shapes,
    )
    return decoders.Autoregressive(decoders.Categorical(net, num_codes), event_shape=shape)


def catch(caught, **tensors):
    """Keeps what goes through a network while gradients are on, and has their gradients kept."""
    for tensor in tensors.values():
        if tensor.requires_grad:
            tensor.retain_grad()
            caught.update(tensors)
