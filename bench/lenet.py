"""LeNet-300-100 and LeNet-5 on MNIST, dense and sparse: DeepCABAC's own experiment, from training to bytes.

    python bench/lenet.py --cache FOLDER [--networks lenet5] [--seeds 0 1 2] [--json FILE]

Needs torch and MNIST (--data). Networks are trained from scratch, each in a minute or two, and kept in FOLDER, and so
are results: a run that was interrupted goes on, and an empty folder begins anew.
"""

from __future__ import annotations

import bz2
import heapq
import json
import lzma
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import _common as common
import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import deepcabac
from deepcabac import dc2019
from deepcabac.dcb.container import MAGIC
from deepcabac.options import Options
from deepcabac.quantize.scales import scale_factors
from deepcabac.torch import calibrate, sparsify, variational

sys.path.insert(0, str(common.ROOT / "examples"))
from train_lenet import lenet5, lenet300

DATA = common.ROOT.parent / "shared" / "data"
MAKERS = {"lenet300": lenet300, "lenet5": lenet5}
TITLES = {"lenet300": "LeNet-300-100", "lenet5": "LeNet5"}
HELD_OUT = 5_000
CAVEATS = (
    "Ratios are 32 bits for each parameter, biases too, over the bytes of the whole .dcb file; of DC-v1, over "
    "those of the authors' stream.",
    f"{HELD_OUT:,} of the 60,000 training images are held out; every choice (training, pruning, step, lambda) was made "
    "on them. Test images are for the numbers below alone.",
    "Dense networks are compressed as they were trained. Sparse ones are pruned and trained further before; their loss "
    "is counted against the dense network that they were made from.",
    "Huffman: codes for single levels, no tables counted. bzip2 -9 and xz -9e: levels as bytes. All of the levels in "
    "our file, tensor by tensor; what our file holds exactly is added to each.",
)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, and made sparse; chosen on held-out images."""

    epochs: int  #: dense: SGD with momentum 0.9, weight decay 5e-4, batches of 64, the learning rate a half cosine
    learning_rate: float
    sparsity: float
    sparse_epochs: int  #: of Adam at 1e-3, falling to zero, batches of 128; pruning takes the first 60 %
    tolerance: int  #: held-out images that a choice may lose


RECIPES = {
    "lenet300": Recipe(epochs=20, learning_rate=0.05, sparsity=0.96, sparse_epochs=20, tolerance=2),
    "lenet5": Recipe(epochs=6, learning_rate=0.03, sparsity=0.98, sparse_epochs=10, tolerance=0),
}


@dataclass
class Data:
    """Images float32 [n, 1, 28, 28] in 0..1 and labels."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def load(cls, folder: Path) -> Data:
        def read(name: str) -> tuple[Tensor, Tensor]:
            with np.load(folder / name) as file:
                x, y = file["x"], file["y"]
            images = torch.from_numpy(x[:, None].astype(np.float32) / 255)
            return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(y.astype(np.int64))

        x, y = read("mnist_train.npz")
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))  # the file is sorted by class
        held, fit = order[:HELD_OUT], order[HELD_OUT:]
        return cls((x[fit], y[fit]), (x[held], y[held]), read("mnist_test.npz"))


def correct(net: nn.Module, images: tuple[Tensor, Tensor]) -> int:
    """How many images get their label."""
    net.eval()
    with torch.no_grad():
        pairs = zip(images[0].split(1000), images[1].split(1000), strict=True)
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in pairs)


def batches(images: tuple[Tensor, Tensor], size: int, epochs: int) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Shuffled batches, with the share of all steps that is done."""
    each = math.ceil(len(images[1]) / size)
    for epoch in range(epochs):
        for number, batch in enumerate(torch.randperm(len(images[1])).split(size)):
            yield (epoch * each + number) / (epochs * each), images[0][batch], images[1][batch]


def train(net: nn.Module, data: Data, recipe: Recipe) -> None:
    """Train a dense network."""
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.learning_rate, momentum=0.9, weight_decay=5e-4)
    for done, x, y in batches(data.train, 64, recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def make_sparse(net: nn.Module, data: Data, recipe: Recipe) -> None:
    """Prune a trained network, and train what is left."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    steps = recipe.sparse_epochs * math.ceil(len(data.train[1]) / 128)
    pruning = sparsify(net, sparsity=recipe.sparsity, steps=round(0.6 * steps), every=50)
    for done, x, y in batches(data.train, 128, recipe.sparse_epochs):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 2 * (1 - done))
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        pruning.step()


def trained(kind: str, seed: int, data: Data, cache: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dense network and the sparse one, as arrays; from the cache if they are there."""
    found = []
    for stage, fit in (("dense", train), ("sparse", make_sparse)):
        path = cache / f"{kind}-{seed}-{stage}.safetensors"
        if not path.exists():
            torch.manual_seed(1000 * seed + len(found))
            net = MAKERS[kind]().to(memory_format=torch.channels_last)
            if found:
                load(net, found[0])
            start = time.perf_counter()
            fit(net.train(), data, RECIPES[kind])
            seconds = time.perf_counter() - start
            common.note(f"{path.name}: {correct(net, data.held_out)} of {HELD_OUT} held out, {seconds:.0f} s")
            cache.mkdir(parents=True, exist_ok=True)
            save_file({name: np.ascontiguousarray(value.numpy()) for name, value in net.state_dict().items()}, path)
        found.append(load_file(path))
    return found[0], found[1]


def load(net: nn.Module, tensors: dict[str, Any]) -> None:
    """Set a network's parameters."""
    net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})


# Compressing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A file, and what it keeps."""

    method: str
    settings: str
    data: bytes
    tensors: dict[str, Any]  #: as they are restored
    held_out: int  #: images got right


Evaluate = Callable[[dict[str, Any]], int]
#: Bytes, and what they are restored to.
Coded = tuple[bytes, dict[str, Any]]
#: Biases, for methods that know no importance of theirs: 0.06 of their size as noise, where the paper has them raw.
BIASES = {"*bias": {"sqnr": 25}}


def curved(tensors: dict[str, Any], net: nn.Module, data: Data, evaluate: Evaluate, least: int) -> Choice | None:
    """Curvature from training images, error feedback, trellis or one quantiser; one price of a bit."""
    images = data.train[0][:10_000].split(200)
    curvature = calibrate(net, list(images), loss="logits")
    found = None
    for quantizer, rate in (("trellis", 1.5), ("scalar", 1.5), ("scalar", 1.0)):
        options = Options(curvature=curvature, quantizer=quantizer, rate_distortion=rate)  # type: ignore[arg-type]
        settings = [
            (f"{quantizer}, lambda {rate:g}, {sqnr} dB", coder(tensors, replace(options, sqnr=sqnr)))
            for sqnr in range(40, 7, -1)
        ]
        found = smaller(found, coarsest("curvature", settings, evaluate, least))
    return found


def dc_v2(tensors: dict[str, Any], net: nn.Module, data: Data, evaluate: Evaluate, least: int) -> Choice | None:
    """DeepCABAC, variant 2: one step for all layers, all weights alike, greedy; both step and lambda are searched."""
    found = None
    for rate in (0.5, 1.0, 2.0):
        options = Options(quantizer="scalar", rate_distortion=rate, overrides=BIASES)
        steps = [0.01 * 2 ** (k / 4) for k in range(28)]
        text = f"lambda {rate:g} of theory's"
        settings = [(f"step {s:.4f}, {text}", coder(tensors, replace(options, step=s))) for s in steps]
        found = smaller(found, coarsest("DC-v2", settings, evaluate, least))
    return found


def dc_v1(tensors: dict[str, Any], net: nn.Module, data: Data, evaluate: Evaluate, least: int) -> Choice | None:
    """DeepCABAC, variant 1: standard deviations by variational training, its step rule; S and lambda are searched."""
    pairs = list(zip(data.train[0][:10_000].split(250), data.train[1][:10_000].split(250), strict=True))
    sigma = variational(
        net,
        pairs,
        lambda outputs, batch: functional.cross_entropy(outputs, batch[1]),
        forward=lambda model, batch: model(batch[0]),
        samples=len(data.train[1]),
        passes=3,
    )

    def compress(s: float, price: float) -> Coded:
        stream = dc2019.compress(tensors, sigma, S=s, lambda_=price)
        return stream, dict(zip(tensors, dc2019.decode(stream), strict=True))

    found = None
    for s in (0, 64, 256):
        prices = [0.01 * 2 ** (k / 2) for k in range(24)]
        settings = [(f"S {s}, lambda {price:.3f}", partial(compress, s, price)) for price in prices]
        found = smaller(found, coarsest("DC-v1", settings, evaluate, least))
    return found


def plain(tensors: dict[str, Any], net: nn.Module, data: Data, evaluate: Evaluate, least: int) -> Choice | None:
    """The default, without data: one SQNR for all layers."""
    options = Options(overrides=BIASES)
    settings = [(f"{sqnr} dB", coder(tensors, replace(options, sqnr=sqnr))) for sqnr in range(30, 3, -1)]
    return coarsest("default, no data", settings, evaluate, least)


METHODS = (curved, dc_v2, dc_v1, plain)


def coarsest(
    method: str, settings: list[tuple[str, Callable[[], Coded]]], evaluate: Evaluate, least: int
) -> Choice | None:
    """The coarsest of ever coarser settings with which ``least`` held-out images are got right.

    Every other one is tried, the coarsest first: the metric moves by two or three images without a reason, and a
    bisection that meets one of them goes the wrong way for good.
    """
    for text, compress in settings[::-2]:
        coded, found = compress()
        right = evaluate(found)
        if right >= least:
            return Choice(method, text, coded, found, right)
    return None


def coder(tensors: dict[str, Any], options: Options) -> Callable[[], Coded]:
    """What compresses with these options."""

    def compress() -> Coded:
        data = deepcabac.compress(tensors, options=options)
        return data, deepcabac.decompress(data)

    return compress


def smaller(one: Choice | None, other: Choice | None) -> Choice | None:
    """The one with the smaller file."""
    return min((choice for choice in (one, other) if choice), key=lambda choice: len(choice.data), default=None)


# Other coders of the same levels --------------------------------------------------------------------------------------


def others(data: bytes) -> dict[str, int]:
    """Bytes that other coders need for the levels of a .dcb file or stream of 2019; what a file holds exactly is added
    to each.
    """
    sizes = dict.fromkeys(("order-0 entropy", "Huffman", "bzip2 -9", "xz -9e"), 0.0)
    if not data.startswith(MAGIC):
        for levels, _ in dc2019.decode_levels(data):
            add_sizes(sizes, levels)
        return {coder: math.ceil(size) for coder, size in sizes.items()}
    with deepcabac.dcb.reader.open_bytes(data, max_bytes=None, threads=1) as opened:
        for name in opened:
            info = opened.info(name)
            if info.step is None:
                sizes = {coder: size + info.coded_bytes for coder, size in sizes.items()}
                continue
            add_sizes(sizes, coded_levels(opened, name))
    return {coder: math.ceil(size) for coder, size in sizes.items()}


def add_sizes(sizes: dict[str, float], levels: Any) -> None:
    """Add what each coder needs for the levels of one tensor."""
    _, counts = np.unique(levels, return_counts=True)
    share = counts / levels.size
    packed = levels.astype(np.int8 if np.abs(levels).max(initial=0) < 128 else np.int16).tobytes()
    sizes["order-0 entropy"] += float(-(counts * np.log2(share)).sum()) / 8
    sizes["Huffman"] += huffman(counts.tolist()) / 8
    sizes["bzip2 -9"] += len(bz2.compress(packed, 9))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    sizes["xz -9e"] += len(lzma.compress(packed, lzma.FORMAT_RAW, filters=filters))


def coded_levels(opened: Any, name: str) -> Any:
    """The integers that a tensor of a .dcb file is coded as: with two quantisers in turn, places in the one whose turn
    it is, for a decoder knows which that is.
    """
    entry = opened._index.entries[opened.keys().index(name)]
    values = np.array(opened[name], np.float64).reshape(entry.shape[0], -1)
    for scales, axis in ((entry.row_scales, (-1, 1)), (entry.column_scales, (1, -1))):
        if scales:
            values /= scale_factors(np.frombuffer(scales, np.int8)).astype(np.float64).reshape(axis)
    levels = np.rint(values / entry.step).astype(np.int64)
    if opened.info(name).quantizer == "trellis":
        levels = np.sign(levels) * ((np.abs(levels) + 1) // 2)
    return levels


def huffman(counts: list[int]) -> int:
    """Bits of a text in which symbols occur so often, in their Huffman code; one bit each if there is one symbol."""
    if len(counts) == 1:
        return counts[0]
    heapq.heapify(counts)
    bits = 0
    while len(counts) > 1:
        both = heapq.heappop(counts) + heapq.heappop(counts)
        bits += both
        heapq.heappush(counts, both)
    return bits


# The table ------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """One method on one network of one seed; accuracies in per cent of the test images."""

    network: str
    stage: str
    seed: int
    method: str
    settings: str
    nonzero: float  #: share of the parameters
    bytes: int
    ratio: float
    dense: float  #: the dense network's accuracy
    before: float  #: that of what was compressed
    after: float
    others: dict[str, int]

    @property
    def lost(self) -> float:
        """Points lost against the dense network."""
        return self.dense - self.after


def measure(kind: str, seed: int, data: Data, cache: Path) -> Iterator[Result]:
    """All methods on the dense network of a seed, and on the sparse one."""
    net = MAKERS[kind]().to(memory_format=torch.channels_last)
    dense, sparse = trained(kind, seed, data, cache)

    def right(tensors: dict[str, Any], images: tuple[Tensor, Tensor]) -> int:
        load(net, tensors)
        return correct(net, images)

    count = len(data.test[1])
    original = right(dense, data.test) * 100 / count
    for stage, tensors in (("dense", dense), ("sparse", sparse)):
        before = right(tensors, data.test) * 100 / count
        least = right(tensors, data.held_out) - RECIPES[kind].tolerance
        weights = sum(value.size for value in tensors.values())
        nonzero = sum(np.count_nonzero(value) for value in tensors.values()) / weights
        for method in METHODS:
            kept = cache / f"{kind}-{seed}-{stage}-{method.__name__}.json"
            if kept.exists():
                yield Result(**json.loads(kept.read_text()))
                continue
            load(net, tensors)
            choice = method(tensors, net, data, lambda found: right(found, data.held_out), least)
            if choice is None:
                common.note(f"{kind} {stage} {seed}: {method.__name__} has no setting that is good enough")
                continue
            after = right(choice.tensors, data.test) * 100 / count
            size = len(choice.data)
            ratio = 4 * weights / size
            result = Result(
                kind, stage, seed, choice.method, choice.settings, nonzero, size, ratio, original, before, after,
                others(choice.data),
            )  # fmt: skip
            common.note(f"{kind} {stage} {seed}: {choice.method} {size:,} bytes {ratio:.1f}x lost {result.lost:.2f}")
            kept.write_text(json.dumps(asdict(result), indent=1))
            yield result


def print_results(results: list[Result], about: dict[str, str], save: bool) -> None:
    """A row for each network, stage and method, over all seeds; then the other coders; then every single result."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.network, result.stage, result.method), []).append(result)

    def mean(values: Iterable[float]) -> float:
        values = list(values)
        return sum(values) / len(values)

    heads = ["network", "method", "non-zero %", "bytes", "ratio (least)", "dense %", "after %", "points lost (most)"]
    print("Means over seeds; points are lost against the dense network.\n")
    lines = [
        [
            f"{TITLES[kind]}, {stage}",
            method,
            f"{100 * mean(r.nonzero for r in rows):.2f}",
            f"{mean(r.bytes for r in rows):,.0f}",
            f"{mean(r.ratio for r in rows):.1f}x ({min(r.ratio for r in rows):.1f}x)",
            f"{mean(r.dense for r in rows):.2f}",
            f"{mean(r.after for r in rows):.2f}",
            f"{mean(r.lost for r in rows):.2f} ({max(r.lost for r in rows):.2f})",
        ]
        for (kind, stage, method), rows in groups.items()
    ]
    common.print_table(heads, lines)
    common.save_table(save, "lenet", about, heads, lines, keys=2)
    print("The same levels by other coders, bytes, means over seeds.\n")
    heads = ["network", "method", ".dcb", *results[0].others]
    lines = [
        [
            f"{TITLES[kind]}, {stage}",
            method,
            f"{mean(r.bytes for r in rows):,.0f}",
            *(f"{mean(r.others[coder] for r in rows):,.0f}" for coder in rows[0].others),
        ]
        for (kind, stage, method), rows in groups.items()
    ]
    common.print_table(heads, lines)
    common.save_table(save, "lenet_coders", about, heads, lines, keys=2)
    print("Every seed.\n")
    common.print_table(
        ["network", "seed", "method", "settings", "bytes", "ratio", "dense %", "after %", "lost"],
        (
            [
                f"{TITLES[r.network]}, {r.stage}",
                str(r.seed),
                r.method,
                r.settings,
                f"{r.bytes:,}",
                f"{r.ratio:.1f}x",
                f"{r.dense:.2f}",
                f"{r.after:.2f}",
                f"{r.lost:.2f}",
            ]
            for r in results
        ),
    )


def main() -> None:
    """Train what is missing, compress, print."""
    parser = common.parser(__doc__)
    parser.add_argument("--cache", type=Path, required=True, metavar="FOLDER", help="where trained networks are kept")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help="mnist_*.npz (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=sorted(MAKERS), default=sorted(MAKERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = common.environment(("numpy", "torch"))
    data = Data.load(arguments.data)
    results = [
        result
        for kind in arguments.networks
        for seed in arguments.seeds
        for result in measure(kind, seed, data, arguments.cache)
    ]
    common.print_head("LeNets on MNIST", CAVEATS, about)
    print_results(results, about, arguments.results)
    common.write_json(arguments.json, about, results=[asdict(result) for result in results])


if __name__ == "__main__":
    main()
