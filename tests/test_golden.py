"""Files that were written once decode for ever to the same arrays, and the writer still writes the same bytes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import deepcabac

GOLDEN = Path(__file__).parent / "golden"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
NEEDS = {"torch.dcb": "torch", "onnx.dcb": "onnx"}

CHANGED = (
    "{}: the writer's bytes have changed. If the old file no longer decodes, or says something else to a reader of "
    "FORMAT.md, this is a new format version; if only the writer's choices differ, CHANGELOG needs an entry 'encoder:' "
    "and tests/golden/make.py is run again (see tests/golden/README.md)."
)


def load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make = load_make()


def test_every_file_is_expected() -> None:
    files = {path.name for path in GOLDEN.iterdir() if path.suffix in (".dcb", ".levels")}
    assert files == set(EXPECTED) == set(make.GOLDEN)


@pytest.mark.parametrize("name", EXPECTED)
def test_file_decodes_to_the_same_arrays(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == EXPECTED[name]["sha256"], "the golden file itself was altered"
    arrays = make.decoded(name, data)
    assert {key: make.describe(value) for key, value in arrays.items()} == EXPECTED[name]["tensors"]


@pytest.mark.parametrize("name", EXPECTED)
def test_writer_writes_the_same_bytes(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert make.GOLDEN[name]() == (GOLDEN / name).read_bytes(), CHANGED.format(name)


def test_exact_tensors_are_the_inputs() -> None:
    arrays = deepcabac.load_file(GOLDEN / "types.dcb")
    for dtype in make.INTEGERS:
        limits = np.iinfo(dtype)
        array = arrays[np.dtype(dtype).name]
        assert array.dtype == dtype
        assert array.tolist() == [limits.min, 0, 1, 100, limits.max]
    assert arrays["bool"].tolist() == [[True, False], [False, True], [True, True]]
    assert arrays["scalar"] == np.float32(0.1)
    assert arrays["integer scalar"] == -(2**62)
    assert np.array_equal(arrays["infinite"], np.array([[np.inf, 1], [-np.inf, 2]]))
    assert deepcabac.decode((GOLDEN / "extremes.levels").read_bytes()).tolist() == make.EXTREMES.tolist()
    assert deepcabac.load_file(GOLDEN / "npz.dcb")["labels"].tolist() == list(range(10))


def test_safetensors_file_is_restored(tmp_path: Path) -> None:
    path = deepcabac.decompress_checkpoint(GOLDEN / "safetensors.dcb", tmp_path / "model.safetensors")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt", "note": "größer ≥ 0"}
    assert header["steps"]["dtype"] == "I64"
    assert header["layer.weight"]["shape"] == [16, 24]


@pytest.mark.parametrize("name", ["sharded", "npz", "torch", "onnx"])
def test_checkpoint_is_restored(name: str, tmp_path: Path) -> None:
    if f"{name}.dcb" in NEEDS:
        pytest.importorskip(NEEDS[f"{name}.dcb"])
    suffix = {"sharded": ".safetensors.index.json", "npz": ".npz", "torch": ".pt", "onnx": ".onnx"}[name]
    path = deepcabac.decompress_checkpoint(GOLDEN / f"{name}.dcb", tmp_path / f"model{suffix}")
    again = tmp_path / "again.dcb"
    deepcabac.compress_checkpoint(path, again)
    assert deepcabac.open_file(again).keys() == deepcabac.open_file(GOLDEN / f"{name}.dcb").keys()
