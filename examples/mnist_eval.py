"""Accuracy of a small MNIST network, with numpy alone.

    python mnist_eval.py MODEL [DATA.npz]

MODEL is a .safetensors or .npz file with LeNet-300-100 (fc1, fc2, fc3) or the Caffe LeNet-5 (conv1, conv2, fc1, fc2).
DATA.npz holds `x`, uint8 [n, 28, 28], and `y`, integer labels [n]; the default is mnist_1000.npz beside this script.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

Tensors = Mapping[str, np.ndarray]

SHIPPED_DATA = Path(__file__).with_name("mnist_1000.npz")
BATCH = 500  # images at a time: bounds the memory of LeNet-5's unfolded patches
SHAPES = {
    "lenet300": {
        "fc1.weight": (300, 784), "fc1.bias": (300,),
        "fc2.weight": (100, 300), "fc2.bias": (100,),
        "fc3.weight": (10, 100), "fc3.bias": (10,),
    },
    "lenet5": {
        "conv1.weight": (20, 1, 5, 5), "conv1.bias": (20,),
        "conv2.weight": (50, 20, 5, 5), "conv2.bias": (50,),
        "fc1.weight": (500, 800), "fc1.bias": (500,),
        "fc2.weight": (10, 500), "fc2.bias": (10,),
    },
}  # fmt: skip


def load_images(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images as float32 [n, 1, 28, 28] in 0..1 and labels as int64 [n]; ValueError if the file holds others."""
    with np.load(path) as data:
        if not {"x", "y"} <= set(data):
            raise ValueError(f"{path}: needs the arrays x and y, has {sorted(data)}")
        x, y = data["x"], data["y"]
    if x.dtype != np.uint8 or x.shape != (len(y), 28, 28):
        raise ValueError(f"{path}: x must be uint8 [{len(y)}, 28, 28], is {x.dtype} {list(x.shape)}")
    return x[:, None].astype(np.float32) / 255, y.astype(np.int64)


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read every tensor of a .safetensors or .npz file."""
    if path.suffix == ".npz":
        with np.load(path) as data:
            return dict(data)
    return load_file(path)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Valid convolution, stride 1: x [n, in, h, w], weight [out, in, k, k] -> [n, out, h-k+1, w-k+1]."""
    patches = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))  # [n, in, h', w', k, k]
    y: np.ndarray = np.tensordot(patches, weight, axes=((1, 4, 5), (1, 2, 3)))  # [n, h', w', out]
    y += bias
    return y.transpose(0, 3, 1, 2)


def max_pool(x: np.ndarray) -> np.ndarray:
    """Largest of every 2x2 block: [n, c, h, w] -> [n, c, h/2, w/2]."""
    n, c, h, w = x.shape
    pooled: np.ndarray = x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))
    return pooled


def logits(tensors: Tensors, x: np.ndarray) -> np.ndarray:
    """Run the network that `tensors` holds on images [n, 1, 28, 28]: scores [n, 10]. ValueError if it holds neither."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes not in SHAPES.values():
        raise ValueError(f"neither LeNet-300-100 nor LeNet-5; the tensors are {shapes}")
    t = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    if "conv1.weight" in t:
        x = max_pool(convolve(x, t["conv1.weight"], t["conv1.bias"]))  # [n, 20, 12, 12]
        x = max_pool(convolve(x, t["conv2.weight"], t["conv2.bias"]))  # [n, 50, 4, 4]
    x = x.reshape(len(x), -1)
    *hidden, last = sorted({name.split(".")[0] for name in t if name.startswith("fc")})
    for layer in hidden:
        x = np.maximum(x @ t[f"{layer}.weight"].T + t[f"{layer}.bias"], 0)
    return x @ t[f"{last}.weight"].T + t[f"{last}.bias"]


def count_correct(tensors: Tensors, x: np.ndarray, y: np.ndarray) -> int:
    """How many images [n, 1, 28, 28] get the label in y [n]."""
    return sum(
        int((logits(tensors, x[i : i + BATCH]).argmax(1) == y[i : i + BATCH]).sum()) for i in range(0, len(y), BATCH)
    )


def accuracy(tensors: Tensors) -> float:
    """Percent of the shipped images classified correctly."""
    x, y = load_images(SHIPPED_DATA)
    return 100 * count_correct(tensors, x, y) / len(y)


def main() -> None:
    """Print the model's accuracy in one line."""
    parser = argparse.ArgumentParser(description="Accuracy of a small MNIST network, with numpy alone.")
    parser.add_argument("model", type=Path, metavar="MODEL", help=".safetensors or .npz")
    parser.add_argument("data", type=Path, metavar="DATA.npz", nargs="?", default=SHIPPED_DATA)
    args = parser.parse_args()
    try:
        x, y = load_images(args.data)
        correct = count_correct(load_tensors(args.model), x, y)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{args.model.name} accuracy {100 * correct / len(y):.2f} % ({correct} of {len(y)})")


if __name__ == "__main__":
    main()
