"""The data sets that have a name: where they come from and how they are split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ppgen.data.binarize import Binarization
from ppgen.data.fetch import PublishedFile
from ppgen.data.formats import frey_pixels, gunzip, matlab_images, read_cifar, read_idx, read_mat
from ppgen.data.photographs import patches
from ppgen.data.shapes import factorised_shapes
from ppgen.data.source import SPLIT_SEED, Source, permutation
from ppgen.data.toys import grid_modes, mixture, ring_modes, stacked_source

Obtain = Callable[[Sequence[PublishedFile]], list[bytes]]  # verified contents of files


@dataclass(frozen=True)
class KnownSet:
    """A data set with a name.

    Args:
        description: one line about it.
        read: reads it, given what obtains its files.
        binarization: what is done with it unless something else is asked for.
        draws: SHA-256 of the bytes of the binarized validation and test data, where the files could be looked
            at.
        files_of: the data set whose files it is made of, if it has none of its own.
    """

    description: str
    read: Callable[[Obtain], Source]
    binarization: Binarization
    draws: tuple[str, str] | None = None
    files_of: str | None = None


def _digits(obtain: Obtain) -> Source:
    from sklearn.datasets import load_digits  # slow to import, and no other data set needs it

    content = load_digits()
    order = permutation(1797)
    return Source(
        data=content.images[order, None].astype(np.uint8),
        sizes=(1297, 200, 300),
        num_levels=17,
        split=f"after a shuffle with seed {SPLIT_SEED}",
        labels=content.target[order].astype(np.int64),
        class_names=tuple("0123456789"),
    )


def _idx_set(
    mirrors: Sequence[str], checksums: dict[str, str], class_names: Sequence[str]
) -> Callable[[Obtain], Source]:
    """The reader of a data set in the four files, and with the split, of MNIST."""
    files = [
        PublishedFile(
            name=f"{name}.gz",
            mirrors=tuple(f"{mirror}/{name}.gz" for mirror in mirrors),
            checksum=f"sha256:{checksum}",  # of the unpacked file: packed files are packed anew by many
            content=gunzip,
            also=(name,),
        )
        for name, checksum in checksums.items()
    ]

    def read(obtain: Obtain) -> Source:
        train, train_labels, test, test_labels = (read_idx(content) for content in obtain(files))
        return Source(
            data=np.concatenate([train, test])[:, None],
            sizes=(50_000, 10_000, 10_000),
            num_levels=256,
            split="the last 10,000 of the training file for validation",
            labels=np.concatenate([train_labels, test_labels]).astype(np.int64),
            class_names=tuple(class_names),
        )

    return read


MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
MNIST_CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

FASHION_MIRRORS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
FASHION_CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

OMNIGLOT = PublishedFile(
    name="chardata.mat",
    mirrors=(
        "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat",
        "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",
    ),
    checksum="git:016a3536ffe5e1d38e42563a18d7a78bfaf643ec",
)


def _omniglot(obtain: Obtain) -> Source:
    (content,) = obtain([OMNIGLOT])
    train, test, train_alphabets, test_alphabets = read_mat(content, "data", "testdata", "target", "testtarget")
    # The shuffle of the importance-weighted autoencoder's code, which published this file.
    order = permutation(train.shape[1], seed=123)
    images = np.concatenate([train[:, order], test], axis=1)
    alphabets = np.concatenate([train_alphabets[:, order], test_alphabets], axis=1)
    return Source(
        data=matlab_images(images, 28, 28).astype(np.float32),
        sizes=(train.shape[1] - 1345, 1345, test.shape[1]),
        num_levels=None,
        split="1,345 of the training images for validation, after a shuffle with seed 123",
        labels=alphabets.argmax(0),  # one-hot columns over 50 alphabets
    )


CIFAR10 = PublishedFile(
    name="cifar-10-binary.tar.gz",  # the edition that needs no unpickling
    mirrors=(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    ),
    checksum="sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR10_MEMBERS = [
    *(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
    "cifar-10-batches-bin/test_batch.bin",
]
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _cifar10(obtain: Obtain) -> Source:
    (archive,) = obtain([CIFAR10])
    images, labels = read_cifar(archive, CIFAR10_MEMBERS)
    return Source(
        data=images,
        sizes=(45_000, 5_000, 10_000),
        num_levels=256,
        split="the last 5,000 of the training files for validation",
        labels=labels.astype(np.int64),
        class_names=CIFAR10_CLASSES,
    )


FREY_FACES = PublishedFile(
    name="frey_rawface.mat",
    mirrors=(
        "https://cs.nyu.edu/~roweis/data/frey_rawface.mat",
        "http://www.cs.nyu.edu/~roweis/data/frey_rawface.mat",
    ),
    checksum="sha256:2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78",  # of the pixels
    content=frey_pixels,
    also=("freyfaces.npz",),
)


def _freyfaces(obtain: Obtain) -> Source:
    (pixels,) = obtain([FREY_FACES])
    images = np.frombuffer(pixels, np.uint8).reshape(1965, 1, 28, 20)
    return Source(
        data=images[permutation(1965)],
        sizes=(1565, 200, 200),
        num_levels=256,
        split=f"after a shuffle with seed {SPLIT_SEED}",  # the published code shuffles without a seed
    )


def _shapes(obtain: Obtain) -> Source:
    images, factors = (array.numpy() for array in factorised_shapes())
    order = permutation(len(images))
    return Source(
        data=images[order],
        sizes=(13_824, 1_728, 1_728),
        num_levels=2,
        split=f"after a shuffle of the whole grid with seed {SPLIT_SEED}",
        labels=factors[order],  # a column a factor
    )


_mnist = _idx_set(MNIST_MIRRORS, MNIST_CHECKSUMS, tuple("0123456789"))

KNOWN_SETS = {
    "digits": KnownSet(
        "handwritten digits, 1,797 images of 8 × 8 in 17 grey levels, embedded in scikit-learn",
        _digits,
        "dynamic",
        (
            "7cb501b7b80f59303794f670a17750675dc6914b13a2591ae009a63ceb9ed63f",
            "2ba1103a9410b04826489db411ddb345f2310427b8918c4c47c561073dd861a2",
        ),
    ),
    "mnist": KnownSet(
        "handwritten digits, 70,000 images of 28 × 28 in 256 grey levels",
        _mnist,
        "dynamic",
        (
            "bf03dc576557652dfc5251be95c792c593a5003e0b9704bd4688048b34b12723",
            "a700b0d972959b58f1603f074199fd8e80fa8cb858cbf1a908eaaf1b93e1117a",
        ),
    ),
    "fashion-mnist": KnownSet(
        "articles of clothing, 70,000 images of 28 × 28 in 256 grey levels",
        _idx_set(FASHION_MIRRORS, FASHION_CHECKSUMS, FASHION_CLASSES),
        "dynamic",
    ),
    "omniglot": KnownSet(
        "handwritten characters of 50 alphabets, 32,415 images of 28 × 28 in grey values, as published with "
        "the importance-weighted autoencoder",
        _omniglot,
        "dynamic",
    ),
    "cifar10": KnownSet("objects in ten classes, 60,000 colour images of 32 × 32 in 256 levels", _cifar10, "none"),
    "patches": KnownSet(
        "patches of two photographs, 15,470 colour images of 32 × 32 in 256 levels, embedded in scikit-learn",
        lambda obtain: patches(),
        "none",
    ),
    "freyfaces": KnownSet(
        "faces of one person in a video, 1,965 images of 28 × 20 in 256 grey levels", _freyfaces, "none"
    ),
    "shapes": KnownSet(
        "three shapes in every scale, rotation and position of a grid, 17,280 binary images of 32 × 32 made by ppgen, "
        "with their factors",
        _shapes,
        "none",
    ),
    "ring": KnownSet(
        "a mixture of 8 narrow Gaussians on a circle in the plane, 70,000 points made by ppgen, with their modes",
        lambda obtain: mixture(ring_modes()),
        "none",
    ),
    "grid": KnownSet(
        "a mixture of 25 narrow Gaussians on a square grid, 70,000 points made by ppgen, with their modes",
        lambda obtain: mixture(grid_modes()),
        "none",
    ),
    "stacked-mnist": KnownSet(
        "three of MNIST's digits in the three channels of 70,000 colour images of 28 × 28, with their 1,000 modes",
        lambda obtain: stacked_source(_mnist(obtain)),
        "none",
        files_of="mnist",
    ),
}
