"""Every data type that a kind of checkpoint can hold: a file of one tensor of each comes back whole.

The table in docs/guide/types.md is what these tests find: ``python tests/test_types.py`` writes it.
"""

from __future__ import annotations

import importlib
import json
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deepcabac
from deepcabac.checkpoint.gguf_file import block_of
from deepcabac.checkpoint.kinds import restored_suffix

PAGE = Path(__file__).parents[1] / "docs" / "guide" / "types.md"
SIZE = 48  # elements; their bits fill bytes
ROUNDED = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
Make = Callable[[Path, str, bytes], None]


def bits(count: int) -> bytes:
    """Random bytes in which no float is not a number, so that the default could round it."""
    return (np.random.default_rng(0).integers(0, 64, count, dtype=np.uint8) & 0x37).tobytes()


# safetensors

SAFETENSORS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64, "BOOL": 8, "BF16": 16}
SAFETENSORS |= dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8)
SAFETENSORS |= {f"{letter}{size}": size for letter in "IU" for size in (8, 16, 32, 64)}
SAFETENSORS |= {f"F{size}": size for size in (16, 32, 64)}


def make_safetensors(path: Path, name: str) -> None:
    raw = bits(SIZE * SAFETENSORS[name] // 8)
    raw = bytes(byte & 1 for byte in raw) if name == "BOOL" else raw
    header = json.dumps({"w": {"dtype": name, "shape": [6, SIZE // 6], "data_offsets": [0, len(raw)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw)


def contents_of_safetensors(path: Path) -> Any:
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


# PyTorch


def torch_types() -> list[str]:
    """Those of which torch can save a tensor, without quantised ones, which are on their way out."""
    import torch

    found = {getattr(torch, name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in found)
    cannot = re.compile(r"u?int[1-7]|q.*")  # torch.save raises KeyError
    return [name for name in names if not cannot.fullmatch(name)]


def make_torch(path: Path, name: str) -> None:
    import torch

    dtype = getattr(torch, name)
    raw = bytearray(bits(SIZE * dtype.itemsize))
    if name == "bool":
        raw = bytearray(byte & 1 for byte in raw)
    torch.save({"w": torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(6, SIZE // 6)}, path)


def contents_of_torch(path: Path) -> Any:
    import torch

    tensor = torch.load(path, weights_only=True)["w"]
    return str(tensor.dtype), tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


# ONNX


def onnx_types() -> list[str]:
    names = importlib.import_module("onnx").TensorProto.DataType.keys()
    return [name for name in names if name != "UNDEFINED"]


def make_onnx(path: Path, name: str) -> None:
    onnx = importlib.import_module("onnx")
    code = onnx.TensorProto.DataType.Value(name)
    if name == "STRING":
        tensor = onnx.helper.make_tensor("w", code, [2], [b"a", b"b"])
    else:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
        width = {"4": 4, "2": 2, "6": 6}.get(re.sub(r"^U?INT|^FLOAT|E.*", "", name), 8 * dtype.itemsize)
        raw = bits(SIZE * width // 8)
        raw = bytes(byte & 1 for byte in raw) if name == "BOOL" else raw
        tensor = onnx.helper.make_tensor("w", code, [6, SIZE // 6], raw, raw=True)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), path)


def contents_of_onnx(path: Path) -> Any:
    return importlib.import_module("onnx").load(path).SerializeToString()


# NumPy

NUMPY = [*(f"{sign}int{size}" for sign in ("", "u") for size in (8, 16, 32, 64)), "float16", "float32", "float64"]
NUMPY += ["longdouble", "complex64", "complex128", "bool", "str", "bytes", "datetime64[s]", "structured", "object"]
NUMPY += ["bfloat16", "float8_e4m3fn", "float4_e2m1fn", "int4"]


def make_npz(path: Path, name: str) -> None:
    ml_dtypes = importlib.import_module("ml_dtypes")
    special = {
        "str": np.array(["größer", "x"]),
        "bytes": np.array([b"a", b"bcd"]),
        "structured": np.zeros(3, [("a", "<i4"), ("b", "S3")]),
        "object": np.array([None, {"a": 1}], object),
    }
    dtype = None if name in special else np.dtype(getattr(ml_dtypes, name, name))
    array = special[name] if dtype is None else np.arange(SIZE).reshape(6, -1).astype(dtype)
    np.savez(path, w=array)


def contents_of_npz(path: Path) -> Any:
    with np.load(path, allow_pickle=True) as file:
        array = file["w"]
        return array.dtype, array.shape, array.tolist() if array.dtype.hasobject else array.tobytes()


# GGUF

GGUF = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12}
GGUF |= {"Q5_K": 13, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21}
GGUF |= {"IQ2_S": 22, "IQ4_XS": 23, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "IQ1_M": 29, "BF16": 30}
GGUF |= {"TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40, "Q1_0": 41}
PLAIN_BYTES = {"F32": 4, "F16": 2, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F64": 8, "BF16": 2}


def make_gguf(path: Path, name: str) -> None:
    kind = GGUF[name]
    elements, nbytes = (1, PLAIN_BYTES[name]) if name in PLAIN_BYTES else block_of(kind)
    shape, raw = (6, SIZE // 6 * elements), bits(SIZE * nbytes)
    head = b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"w" + struct.pack("<IQQIQ", 2, *shape[::-1], kind, 0)
    path.write_bytes(head + bytes(-len(head) % 32) + raw)


KINDS: dict[str, tuple[str, Callable[[], list[str]], Callable[[Path, str], None], Callable[[Path], Any]]] = {
    "safetensors": ("safetensors", lambda: list(SAFETENSORS), make_safetensors, contents_of_safetensors),
    "torch": ("PyTorch", torch_types, make_torch, contents_of_torch),
    "onnx": ("ONNX", onnx_types, make_onnx, contents_of_onnx),
    "npz": ("NumPy", lambda: NUMPY, make_npz, contents_of_npz),
    "gguf": ("GGUF", lambda: list(GGUF), make_gguf, Path.read_bytes),
}


def stored_as(kind: str, name: str, folder: Path) -> tuple[str, str]:
    """The type in the .dcb file, and what becomes of it; asserts that the file comes back."""
    _, _, make, contents = KINDS[kind]
    path = folder / f"m{restored_suffix(kind, b'')}"
    make(path, name)
    before = contents(path)
    for settings in ({"lossless": True}, {}):
        compressed, _ = deepcabac.compress_checkpoint(path, folder / "m.dcb", overwrite=True, **settings)
        with deepcabac.open_file(compressed) as opened:
            infos = [opened.info(key) for key in opened]
        restored = deepcabac.decompress_checkpoint(compressed, folder / f"n{path.suffix}", overwrite=True)
        dtype = str(infos[0].dtype) if infos else "in the graph"
        if settings or dtype not in ROUNDED:
            assert contents(restored) == before, (kind, name)
    how = "rounded, or exact" if dtype in ROUNDED else "exact"
    return dtype, how


def table() -> str:
    """The table of the page."""
    lines = ["| kind | type in the checkpoint | type in the .dcb file | values |", "| --- | --- | --- | --- |"]
    for kind, (title, types, _, _) in KINDS.items():
        for name in types():
            with tempfile.TemporaryDirectory() as folder:
                lines.append(f"| {title} | `{name}` | {' | '.join(stored_as(kind, name, Path(folder)))} |")
    return "\n".join(lines) + "\n"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_comes_back_and_is_in_the_table(kind: str, tmp_path: Path) -> None:
    if kind not in ("npz", "gguf"):
        pytest.importorskip(kind)
    title, types, _, _ = KINDS[kind]
    page = PAGE.read_text()
    for name in types():
        row = f"| {title} | `{name}` | {' | '.join(stored_as(kind, name, tmp_path))} |"
        assert row in page, f"run python tests/test_types.py: {row}"
        for file in tmp_path.iterdir():
            file.unlink()


def test_these_are_the_types_that_gguf_knows() -> None:
    known = pytest.importorskip("gguf").GGMLQuantizationType
    inside = {"Q8_1", "Q8_K"}  # of llama.cpp, never in files
    assert {kind.name for kind in known} - inside <= set(GGUF)


def test_these_are_the_types_that_safetensors_knows() -> None:
    safetensors = pytest.importorskip("safetensors")
    header = b'{"w":{"dtype":"X","shape":[0],"data_offsets":[0,0]}}'
    with pytest.raises(safetensors.SafetensorError) as caught:
        safetensors.deserialize(struct.pack("<Q", len(header)) + header)
    named = re.findall(r"`([A-Z0-9_]+)`", str(caught.value).split("expected")[1])
    if "F4" not in named:
        pytest.skip("an older safetensors")
    assert set(named) == set(SAFETENSORS)


if __name__ == "__main__":
    text = PAGE.read_text()
    begin = text.index("| kind |")
    PAGE.write_text(text[:begin] + table())
