"""How much faster sampling by columns is than running the whole network for every pixel, on images of 28 × 28.

Both draw the same images from the same seed: the number that differ is printed, too. One or two may, where a sum in
another order falls on the other side of a random number. Networks are as they are initialised, since time does not
depend on the weights. Seconds are those of the processor, which other work on the machine disturbs least; drawing by
columns is done three times, of which the median counts, once everything is imported. What a column costs is mostly the
start of its operations until some tens of images are drawn at once: a single image is where the ratio is least.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from record import machine, write

from ppgen import decoders, nn

NETWORKS = {
    "PixelCNN": nn.PixelCNN,
    "GatedPixelCNN": nn.GatedPixelCNN,
    "PixelCNN++": nn.PixelCNNPlusPlus,
    "Row LSTM": lambda *a, **o: nn.PixelRNN(*a, nn.RowLSTM, **o),
    "Diagonal BiLSTM": nn.PixelRNN,
}


def measure(name: str, num_images: int, size: int, channels: int) -> dict:
    torch.manual_seed(0)
    net = NETWORKS[name]((1, size, size), (1, size, size), channels=channels)
    distribution = decoders.Autoregressive(decoders.Bernoulli(net))()
    distribution.sample((1,))
    drawn, seconds = [], []
    for incremental in (True, False):
        took = []
        for _ in range(3 if incremental else 1):
            torch.manual_seed(1)
            began = time.process_time()
            x = distribution.sample((num_images,), incremental=incremental, progress=not incremental)
            took.append(time.process_time() - began)
        drawn.append(x)
        seconds.append(statistics.median(took))
    return {
        "network": name,
        "channels": channels,
        "parameters": sum(p.numel() for p in net.parameters()),
        "images": num_images,
        "size": size,
        "incremental_seconds": round(seconds[0], 3),
        "naive_seconds": round(seconds[1], 3),
        "ratio": round(seconds[1] / seconds[0], 1),
        "images_that_differ": int((drawn[0] != drawn[1]).flatten(1).any(1).sum()),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=lambda text: text.split(","), default=["PixelCNN", "GatedPixelCNN"])
    parser.add_argument("--num-images", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16])
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="images of 8 × 8 and narrow networks")
    parser.add_argument("--out", type=Path, help="a JSON file of the results")
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        raise SystemExit(f"--networks {', '.join(sorted(unknown))}: known are {', '.join(NETWORKS)}.")
    size, channels = (8, 8) if args.quick else (28, args.channels)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    rows = []
    try:
        for name, num_images in itertools.product(args.networks, args.num_images):
            row = measure(name, num_images, size, channels)
            print(
                f"{name:<16} {num_images:3} images: naive {row['naive_seconds']:8.2f} s, "
                f"incremental {row['incremental_seconds']:6.2f} s: {row['ratio']:6.1f} times faster, "
                f"{row['images_that_differ']} differ",
                flush=True,
            )
            rows.append(row)
            if args.out:
                write(args.out, rows)
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
