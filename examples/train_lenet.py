"""Train LeNet-300-100, or the Caffe LeNet-5, on MNIST and save it as float32 safetensors.

    python train_lenet.py MNIST_TRAIN.npz [--out FILE] [--lenet5] [--validate]

MNIST_TRAIN.npz holds `x`, uint8 [n, 28, 28] (0 = background), and `y`, integer labels 0..9 [n]. Any order will do.
One thread, fixed seed: the same torch build on the same kind of processor gives the same weights. (The file's header
may differ: safetensors writes its metadata in any order.)
With --validate, 5,000 images drawn at random are held out of training, their accuracy is printed and nothing is saved:
this is how the settings below were chosen. Without it, every image trains. Test images play no part. mnist_eval.py
measures the file that comes out.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from mnist_eval import count_correct, load_images
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 0
BATCH = 128
EPOCHS = {"lenet300": 20, "lenet5": 5}
PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
WARP = 0.10  # largest random rotation in radians, scaling as a share, and shift in half image widths (1.4 pixels)
HELD_OUT = 5_000
TITLES = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5 (Caffe shape)"}


def lenet300() -> nn.Sequential:
    """Fully connected 784-300-100-10: 266,610 parameters."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10),
        )
    )


def lenet5() -> nn.Sequential:
    """Two 5x5 convolutions with max pooling and no activation between, then 800-500-10: 431,080 parameters."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


def warp(x: Tensor) -> Tensor:
    """Rotate, scale and shift every image [n, 1, 28, 28] by its own small random amount."""
    angle, zoom, right, down = WARP * (2 * torch.rand(4, len(x)) - 1)  # each [n]
    c, s = (1 + zoom) * angle.cos(), (1 + zoom) * angle.sin()
    affine = torch.stack([c, -s, right, s, c, down], 1).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(affine, list(x.shape), align_corners=False), align_corners=False)


def train(net: nn.Sequential, x: Tensor, y: Tensor, epochs: int) -> None:
    """Fit `net` in place to images [n, 1, 28, 28] and labels [n]: AdamW, one learning-rate cycle."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.1)
    start = time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(warp(x[batch])), y[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1:2} of {epochs}  loss {total / len(x):.4f}  {seconds:.0f} s", file=sys.stderr)


def main() -> None:
    """Train one network and save it."""
    parser = argparse.ArgumentParser(description="Train a small network on MNIST and save it as safetensors.")
    parser.add_argument("data", type=Path, metavar="MNIST_TRAIN.npz", help="x uint8 [n, 28, 28] and y [n]")
    parser.add_argument("--out", type=Path, help="default: lenet300.safetensors or lenet5.safetensors by the script")
    parser.add_argument("--lenet5", action="store_true", help="train the Caffe LeNet-5 instead of LeNet-300-100")
    parser.add_argument("--validate", action="store_true", help="hold 5,000 images out and print their accuracy")
    args = parser.parse_args()
    try:
        x, y = load_images(args.data)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        parser.exit(1, f"error: {error}\n")

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    kind, net = ("lenet5", lenet5()) if args.lenet5 else ("lenet300", lenet300())
    held_out, fit = np.split(np.random.default_rng(SEED).permutation(len(y)), [HELD_OUT if args.validate else 0])
    train(net, torch.from_numpy(x[fit]), torch.from_numpy(y[fit]), EPOCHS[kind])
    tensors = {name: tensor.numpy() for name, tensor in net.state_dict().items()}

    if args.validate:
        correct = count_correct(tensors, x[held_out], y[held_out])
        print(f"{kind} accuracy {100 * correct / HELD_OUT:.2f} % ({correct} of {HELD_OUT} held out)")
        return
    out = args.out or Path(__file__).with_name(f"{kind}.safetensors")
    metadata = {
        "description": f"{TITLES[kind]} trained on {len(y):,} MNIST images by examples/train_lenet.py",
        "license": "The weights come under the licence of the deepcabac project. They were trained on MNIST "
        "(Y. LeCun, C. Cortes, C. J. C. Burges), which is CC BY-SA 3.0.",
        "seed": str(SEED),
        "input": "float32 [n, 1, 28, 28], pixel / 255",
    }
    save_file(tensors, out, metadata)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
