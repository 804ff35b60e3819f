"""Networks: pure torch, from one event shape to another; they know no distribution."""

from .branches import GatedBranches
from .conv import ConvNet, DeconvNet, GatedConv2d
from .gan import DCGANDiscriminator, DCGANGenerator, spectrally_normalized
from .gated import GatedLinear, GatedMLP
from .mlp import MLP
from .pixelcnn import GatedPixelCNN, PixelCNN
from .pixelcnnpp import PixelCNNPlusPlus
from .pixelrnn import DiagonalBiLSTM, PixelRNN, RowLSTM
from .quantizer import VectorQuantizer
from .residual import ResidualConvNet
from .shapes import as_shape, batched, check_event, concat, feed

__all__ = [
    "MLP",
    "ConvNet",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DeconvNet",
    "DiagonalBiLSTM",
    "GatedBranches",
    "GatedConv2d",
    "GatedLinear",
    "GatedMLP",
    "GatedPixelCNN",
    "PixelCNN",
    "PixelCNNPlusPlus",
    "PixelRNN",
    "ResidualConvNet",
    "RowLSTM",
    "VectorQuantizer",
    "as_shape",
    "batched",
    "check_event",
    "concat",
    "feed",
    "spectrally_normalized",
]
