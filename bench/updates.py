"""Bytes of an update: two checkpoints of one fine-tuning run, the second as a difference to the first.

    python bench/updates.py --zipnn PYTHON --nncodec PYTHON [--only resnet20] [--cache FOLDER]
    python bench/updates.py --steps [--repeat 5]

The runs are made here, from the shared networks: ResNet-20 on CIFAR-10's 2,000 calibration images, all-MiniLM-L6-v2 on
the pairs of STS-B's dev set with a small learning rate. Each is saved after as many steps again; the second
checkpoint is coded as an update of the first, without loss and with, and measured on the test data. ZipNN and zstd get
the bitwise XOR of the files' tensors, as ZipNN's own deltas are made. NNCodec codes the original model, the first
difference and the second, with temporal context adaptation; the last one counts.

``--steps`` is about single steps of an optimiser in bfloat16 instead: MiniLM's float32 weights, and the same plus
normal numbers times 1e-6 and 3e-6, all cast. Peers are the command ``zstd -3`` on the XOR, and on lists of where values
changed, as gaps in 4 bytes, and of what they became; their time includes what makes the XOR and the lists. Seconds are
the processor's, on one thread, the least of several runs; our time includes the check of the base by its digest.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _common
import ml_dtypes
import networks_torch
import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file
from torch.nn import functional

import deepcabac
import deepcabac.torch
from deepcabac.quantize.exact import patterns
from deepcabac.tensors import to_torch

Arrays = dict[str, npt.NDArray[Any]]
WORKERS = Path(__file__).resolve().parent / "peers"
NETWORKS = ("resnet20", "minilm")
#: SQNR of the difference, in dB.
QUALITIES = (3.0, 6.0, 10.0)
#: Quantisation parameters of NNCodec's differences.
QPS = {"resnet20": (-56, -52, -48, -44), "minilm": (-76, -72, -68)}
STEPS = {"resnet20": 20, "minilm": 12}


def resnet_losses(trained: networks_torch.Trained, models: Path) -> Iterator[torch.Tensor]:
    """Cross-entropy of batches of 100 calibration images, in a new order each time round."""
    with np.load(models.parent / "data" / "cifar10_calibration.npz") as archive:
        images, labels = archive["x"], archive["y"].astype(np.int64)
    mean, deviation = (
        torch.tensor(three)[:, None, None] for three in (networks_torch.CIFAR_MEAN, networks_torch.CIFAR_DEVIATION)
    )
    random = np.random.default_rng(networks_torch.SEED)
    while True:
        for chosen in np.split(random.permutation(len(images)), len(images) // 100):
            batch = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
            yield functional.cross_entropy(trained.model((batch - mean) / deviation), torch.from_numpy(labels[chosen]))


def minilm_losses(trained: networks_torch.Trained, models: Path) -> Iterator[torch.Tensor]:
    """Squared error of the cosine of batches of 25 pairs of sentences, scores taken as 0 to 1."""
    script = networks_torch._script(models / "minilm")
    first, second, scores = script.load_data("dev")
    tokenizer = script.Tokenizer.from_file(str(trained.checkpoint.with_name("tokenizer.json")))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding()
    random = np.random.default_rng(networks_torch.SEED)
    while True:
        chosen = random.choice(len(first), 25, replace=False)
        coded = tokenizer.encode_batch([first[index] for index in chosen] + [second[index] for index in chosen])
        ids, mask = (torch.tensor([getattr(one, field) for one in coded]) for field in ("ids", "attention_mask"))
        one, other = trained.model(ids, mask).chunk(2)
        wanted = torch.tensor(scores[chosen] / 5, dtype=torch.float32)
        yield functional.mse_loss((one * other).sum(dim=1), wanted)


def versions(name: str, models: Path, cache: Path | None) -> tuple[networks_torch.Trained, list[Arrays]]:
    """The network and three checkpoints of it: the original and two later ones of one run."""
    trained = networks_torch.resnet(models, 20) if name == "resnet20" else networks_torch.minilm(models)
    kept = [cache / f"{name}-{number}.npz" for number in (1, 2)] if cache else []
    if kept and all(path.exists() for path in kept):
        found = []
        for path in kept:
            with np.load(path) as archive:
                found.append({key: archive[key] for key in archive.files})
        return trained, [trained.tensors, *found]
    torch.manual_seed(networks_torch.SEED)
    losses = (resnet_losses if name == "resnet20" else minilm_losses)(trained, models)
    rate = 5e-5 if name == "resnet20" else 2e-6
    optimizer = torch.optim.AdamW(trained.model.parameters(), lr=rate)
    trained.model.eval()  # batch-norm's statistics stay: 2,000 images are no reason to change them
    trained.model.requires_grad_(True)
    found = []
    for number in (1, 2):
        for _ in range(STEPS[name]):
            optimizer.zero_grad()
            next(losses).backward()
            optimizer.step()
        state = {key: value.detach().numpy().copy() for key, value in trained.model.state_dict().items()}
        found.append({key: state.get(key, value) for key, value in trained.tensors.items()})
        if cache:
            cache.mkdir(parents=True, exist_ok=True)
            np.savez(cache / f"{name}-{number}.npz", **found[-1])
    return trained, [trained.tensors, *found]


def nncodec(python: Path, steps: list[Arrays], qp: int, tca: bool = True) -> tuple[int, Arrays]:
    """Bytes of the last step and what it decodes to."""
    with tempfile.TemporaryDirectory() as folder:
        given, back = Path(folder) / "given.npz", Path(folder) / "back.npz"
        np.savez(
            given, **{f"{number}/{key}": value for number, step in enumerate(steps) for key, value in step.items()}
        )
        command = [str(python), str(WORKERS / "nncodec_updates_worker.py"), str(given), str(back), "--qp", str(qp)]
        done = subprocess.run(command + ["--no-tca"] * (not tca), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"NNCodec failed: {done.stderr[-500:]}")
        with np.load(back) as archive:
            return json.loads(done.stdout)["bytes"][-1], {key: archive[key] for key in archive.files}


def xor(old: Arrays, new: Arrays) -> bytes:
    """The bits that differ, tensor after tensor."""
    return b"".join((patterns(old[key]) ^ patterns(new[key])).tobytes() for key in new)


def foreign(python: Path | None, data: bytes) -> dict[str, int]:
    """Bytes that ZipNN and zstd -19 make of ``data``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        path.write_bytes(data)
        sizes = {
            "zstd -19 of XOR": len(subprocess.run(["zstd", "-19", "-qc", path], capture_output=True, check=True).stdout)
        }
        if python is not None:
            command = [str(python), str(WORKERS / "zipnn_worker.py"), str(path), "float32"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            sizes["ZipNN 0.5.4 of XOR"] = json.loads(done.stdout)["bytes"]
    return sizes


def step_files(size: float) -> tuple[Arrays, Arrays]:
    """MiniLM in bfloat16 before and after a simulated step."""
    random = np.random.default_rng(0)
    weights = {key: array for key, array in load_file(_common.minilm_path()).items() if array.dtype == np.float32}
    base = {key: array.astype(ml_dtypes.bfloat16) for key, array in weights.items()}
    new = {
        key: (array + random.standard_normal(array.shape, np.float32) * np.float32(size)).astype(ml_dtypes.bfloat16)
        for key, array in weights.items()
    }
    return base, new


def zstd(data: bytes, level: int = 3) -> bytes:
    """The command's code."""
    return subprocess.run(["zstd", f"-{level}", "-qc"], input=data, capture_output=True, check=True).stdout


def lists(old: Arrays, new: Arrays) -> bytes:
    """Where values changed, as gaps, and what they became."""
    before, after = (np.concatenate([patterns(one[key]) for key in new]) for one in (old, new))
    places = np.flatnonzero(before != after)
    return np.diff(places, prepend=0).astype("<u4").tobytes() + after[places].tobytes()


def unzstd(coded: bytes) -> bytes:
    """What the command decodes."""
    return subprocess.run(["zstd", "-dqc"], input=coded, capture_output=True, check=True).stdout


def from_xor(old: Arrays, data: bytes) -> Arrays:
    """The new tensors from the XOR."""
    found, at = {}, 0
    for key, array in old.items():
        words = np.frombuffer(data, "<u2", array.size, at)
        found[key] = patterns(array) ^ words
        at += array.nbytes
    return found


def from_lists(old: Arrays, data: bytes) -> npt.NDArray[Any]:
    """The new values from the lists."""
    count = len(data) // 6
    values = np.concatenate([patterns(array) for array in old.values()])
    places = np.cumsum(np.frombuffer(data, "<u4", count), dtype=np.int64)
    values[places] = np.frombuffer(data, "<u2", count, 4 * count)
    return values


def conditional_entropy(old: Arrays, new: Arrays) -> float:
    """Bytes of the changes in representable numbers, given the base's exponent, over all bfloat16 tensors."""
    before, after = (np.concatenate([patterns(one[key]) for key in new]).astype(np.int64) for one in (old, new))
    before_order, after_order = (np.where(one >> 15, one ^ 0x7FFF, one).astype(np.int16) for one in (before, after))
    step, exponents = after_order.astype(np.int64) - before_order, before >> 7 & 255
    bits = 0.0
    for exponent in np.unique(exponents):
        counts = np.unique(step[exponents == exponent], return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


def least(call: Callable[[], Any], repeat: int, children: bool = False) -> tuple[float, Any]:
    """The least processor seconds of several calls, and what the last one returned."""
    def clock() -> float:
        times = os.times()
        return times.children_user + times.children_system if children else time.process_time()

    best, result = float("inf"), None
    for _ in range(repeat):
        start = clock()
        result = call()
        best = min(best, clock() - start)
    return best, result


def measure_steps(repeat: int) -> list[dict[str, Any]]:
    """Bytes and speed of simulated steps."""
    return [row for size in (1e-6, 3e-6) for row in measure_step(size, repeat)]


def measure_step(size: float, repeat: int) -> list[dict[str, Any]]:
    """The same of one step."""
    rows: list[dict[str, Any]] = []
    base, new = step_files(size)
    raw = sum(array.nbytes for array in new.values())
    changed = sum(int((patterns(base[key]) != patterns(new[key])).sum()) for key in new)
    print(f"steps of {size:g}: {200 * changed / raw:.2f} % of the weights change; {raw:,} bytes")

    def add(
        label: str, nbytes: float, seconds: tuple[float, ...] = ()
    ) -> None:
        speeds, percent = [raw / 1e6 / one for one in seconds], 100 * nbytes / raw
        rows.append({"step": size, "what": label, "bytes": round(nbytes), "percent": percent, "MB/s": speeds})
        shown = "".join(f"{speed:8.0f} MB/s" for speed in speeds)
        print(f"  {label:46} {round(nbytes):>11,} {percent:7.3f} %{shown}", flush=True)

    add("entropy given the base's exponent", conditional_entropy(base, new))
    encode, data = least(lambda: deepcabac.compress(new, base=base, lossless=True, threads=1), repeat)
    decode, back = least(lambda: deepcabac.decompress(data, base=base, threads=1), repeat)
    if any(back[key].tobytes() != new[key].tobytes() for key in new):
        raise SystemExit("the update is not lossless")
    add("deepcabac: compress, decompress", len(data), (encode, decode))
    tensors = {key: to_torch(key, array.copy()) for key, array in base.items()}
    publisher = deepcabac.torch.Publisher(tensors, threads=1)
    model = {key: tensor.clone() for key, tensor in tensors.items()}
    publisher.publish()
    later = {key: to_torch(key, array) for key, array in new.items()}
    publish = apply = float("inf")
    for _ in range(repeat):
        for key, tensor in tensors.items():
            tensor.copy_(later[key])
            model[key].copy_(to_torch(key, base[key].copy()))
        seconds, data = least(lambda: publisher.publish(whole=False), 1)
        publish = min(publish, seconds)
        seconds, _ = least(lambda data=data: deepcabac.torch.apply(data, model, threads=1), 1)
        apply = min(apply, seconds)
        for key, tensor in tensors.items():
            tensor.copy_(to_torch(key, base[key].copy()))
        publisher.publish(whole=False)
    if any(not torch.equal(model[key], later[key]) for key in later):
        raise SystemExit("apply is not lossless")
    add("deepcabac.torch: publish, apply", len(data), (publish, apply))
    peers = (("zstd -3 of XOR", xor, from_xor), ("zstd -3 of gaps and values", lists, from_lists))
    for label, make, undo in peers:
        seconds, plain = least(lambda make=make: make(base, new), repeat)
        coding, coded = least(lambda plain=plain: zstd(plain), repeat, children=True)
        decoding, _ = least(lambda coded=coded: unzstd(coded), repeat, children=True)
        restoring, _ = least(lambda plain=plain, undo=undo: undo(base, plain), repeat)
        add(label, len(coded), (seconds + coding, decoding + restoring))
    return rows


def main() -> None:
    """Make the runs, code the updates, measure them, print a table for each network."""
    options = _common.parser(__doc__)
    _common.add_models(options)
    options.add_argument("--only", choices=NETWORKS, help="one network alone")
    options.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the checkpoints of the runs here")
    options.add_argument("--zipnn", type=Path, metavar="PYTHON", help="of an environment that has zipnn 0.5.4")
    options.add_argument("--nncodec", type=Path, metavar="PYTHON", help="of an environment that has nncodec 2.1.3")
    options.add_argument("--steps", action="store_true", help="simulated steps of an optimiser, and nothing else")
    options.add_argument("--repeat", type=int, default=5, help="runs for the speed of --steps")
    arguments = options.parse_args()
    about = _common.environment(("numpy", "torch"))
    if arguments.steps:
        _common.print_head("Updates: simulated steps of an optimiser, MiniLM in bfloat16", ["one thread"], about)
        _common.write_json(arguments.json, about, steps=measure_steps(arguments.repeat))
        return
    _common.print_head(
        "Updates: the second of two checkpoints of a fine-tuning run",
        ["one run each, made here; its checkpoints depend on torch's build in the last digits"],
        about,
    )
    results = {}
    for name in NETWORKS:
        if arguments.only in (None, name):
            results[name] = measure(name, arguments)
    if "minilm" in results:
        rows = [
            [row["what"], f"{row['bytes']:,}", f"{row['percent']:.2f}", _shown(row["metric"])]
            for row in results["minilm"]
        ]
        _common.save_table(arguments.results, "updates", about, ["file", "bytes", "%", "Spearman"], rows, keys=0)
    _common.write_json(arguments.json, about, **results)


def _shown(metric: float | None) -> str:
    return "" if metric is None else f"{100 * metric:.3f}"


def measure(name: str, arguments: Any) -> list[dict[str, Any]]:
    """The rows of one network."""
    trained, (original, old, new) = versions(name, arguments.models, arguments.cache)
    raw = sum(array.nbytes for array in new.values())
    rows: list[dict[str, Any]] = []

    def add(label: str, size: int, arrays: Arrays | None = None) -> None:
        value = None if arrays is None else trained.measure(arrays).value
        rows.append({"what": label, "bytes": size, "percent": 100 * size / raw, "metric": value})
        print(f"{name:9} {label:46} {size:>11,} {100 * size / raw:7.3f} % {_shown(value)}", flush=True)

    add("old checkpoint, float32", raw, old)
    add("new checkpoint, float32", raw, new)
    add("new alone, lossless", len(deepcabac.compress(new, lossless=True)))
    data = deepcabac.compress(new, base=old, lossless=True)
    back = deepcabac.decompress(data, base=old)
    if any(back[key].tobytes() != new[key].tobytes() for key in new):
        raise SystemExit("the lossless update is not lossless")
    add("update, lossless", len(data))
    for label, size in foreign(arguments.zipnn, xor(old, new)).items():
        add(label, size)
    for sqnr in QUALITIES:
        data = deepcabac.compress(new, base=old, sqnr=sqnr)
        add(f"update, {sqnr:g} dB", len(data), deepcabac.decompress(data, base=old))
    if arguments.nncodec:
        floats = [key for key in new if new[key].dtype == np.float32 and new[key].ndim]
        pairs = [(original, None), (old, original), (new, old)]
        steps = [{key: one[key] - two[key] if two else one[key] for key in floats} for one, two in pairs]
        for qp in QPS[name]:
            for tca in (True, False):
                size, difference = nncodec(arguments.nncodec, steps, qp, tca)
                arrays = {key: old[key] + difference[key] if key in difference else new[key] for key in new}
                add(f"NNCodec, dependent{', temporal contexts' if tca else ''}, qp {qp}", size, arrays)
    return rows


if __name__ == "__main__":
    main()
