"""The npm package reads what this writer writes, to the same bits, and refuses what this reader refuses."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import deepcabac

ROOT = Path(__file__).parents[1]
JS = ROOT / "js"
sys.path.insert(0, str(ROOT / "attacks"))

import forge  # noqa: E402

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not (JS / "lib" / "deepcabac.simd.wasm").exists(), reason="js/build.sh was not run"),
]
MAX_BYTES = 8 << 20


def in_node(files):
    """What js/test/compare.js says of files, each a path or bytes with a path to write them to."""
    given = json.dumps([(str(path), MAX_BYTES) for path in files])
    done = subprocess.run(
        ["node", str(JS / "test" / "compare.js")], input=given, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_python(data):
    try:
        arrays = deepcabac.decompress(data, max_bytes=MAX_BYTES)
    except deepcabac.DeepCabacError as error:
        return {"error": type(error).__name__}
    return {
        "tensors": {
            name: {
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
            }
            for name, array in arrays.items()
        }
    }


def tensors(seed):
    rng = np.random.default_rng(seed)
    wide = rng.standard_normal((90, 70)) * np.exp(rng.standard_normal((90, 1)))
    return {
        "wide": wide.astype(np.float32),
        "double": rng.standard_normal((40, 33)),
        "half": (wide * 300).astype(np.float16),
        "brain": wide[:60].astype(ml_dtypes.bfloat16),
        "eight": wide[:, :40].astype(ml_dtypes.float8_e4m3fn),
        "conv": (rng.standard_normal((12, 8, 3, 3)) + 1).astype(np.float32),
        "sparse": (wide * (rng.random(wide.shape) < 0.05)).astype(np.float32),
        "few": rng.choice(np.array([0, 1, 1.5, -7], np.float32), (50, 50)),
        "count": rng.integers(-500, 70_000, (31, 17)),
        "mask": rng.random(100) < 0.1,
        "wave": (rng.standard_normal((9, 5)) + 1j * rng.standard_normal((9, 5))).astype(np.complex64),
        "nibbles": rng.integers(-8, 8, (7, 6)).astype(ml_dtypes.int4),
        "none": np.zeros((3, 0), np.int8),
        "one": np.float32(2.5),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"sqnr": 30},
        {"preset": "fast", "sqnr": 12},
        {"preset": "small", "sqnr": 20},
        {"quantizer": "scalar", "sqnr": 25},
        {"lossless": True},
        {"lossless": True, "preset": "fast"},
    ],
    ids=str,
)
def test_what_the_writer_writes_decodes_to_the_same_bits(options, tmp_path):
    data = deepcabac.compress(tensors(len(str(options))), **options)
    path = tmp_path / "model.dcb"
    path.write_bytes(data)
    (outcome,) = in_node([path])
    assert outcome == in_python(data) and len(outcome["tensors"]) == 14


NARROW = [
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "float8_e4m3"),
    *("float8_e3m4", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"),
    *("int4", "uint4", "int2", "uint2"),
]


def large(seed):
    """Enough for all lanes of the coders, with values that need escapes and rows that resemble each other."""
    rng = np.random.default_rng(seed)
    wide = rng.standard_t(3, (410, 130)) * np.exp(rng.standard_normal((410, 1)))
    wide += np.cumsum(rng.standard_normal((410, 130)), axis=0) / 4
    codes = np.minimum(rng.geometric(0.4, (64, 40, 8)), 15).astype(np.uint64) << np.arange(0, 32, 4, dtype=np.uint64)
    return {
        "single": wide.astype(np.float32),
        "double": wide[:, :60],
        "half": wide.astype(np.float16),
        "brain": wide.astype(ml_dtypes.bfloat16),
        "rounded": wide.astype(np.float16).astype(np.float32),
        "kernels": (rng.standard_t(3, (300, 12, 3, 3)) + 0.5).astype(np.float32),
        "packed": codes.sum(axis=-1, dtype=np.uint64).astype(np.uint32).view(np.int32),
        "waves": (wide[:40] + 1j * wide[40:80]).astype(np.complex128),
        **{str(np.dtype(kind)): rng.integers(0, 200, 9000).astype(kind) for kind in "bBhHiIqQ"},
        **{name: rng.integers(0, 4, 300).astype(getattr(ml_dtypes, name)) for name in NARROW},
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "fast"},
        *({"preset": "fast", "sqnr": sqnr} for sqnr in (5, 30, 50, 80)),
        {"preset": "fast", "quantizer": "scalar", "sqnr": 20},
        {"preset": "small"},
        {"sqnr": 70},
        {"lossless": True},
        {"lossless": True, "preset": "small"},
    ],
    ids=str,
)
def test_large_tensors_and_every_type_decode_to_the_same_bits(options, tmp_path):
    path = tmp_path / "model.dcb"
    path.write_bytes(deepcabac.compress(large(len(str(options))), **options))
    (outcome,) = in_node([path])
    assert outcome == in_python(path.read_bytes()) and len(outcome["tensors"]) == 31


def test_a_damaged_index_is_refused_by_both_or_by_none(tmp_path):
    """Bytes of the plain index are changed, and the checksums made right."""
    rng = np.random.default_rng(5)
    small = {name: array[:3] if array.ndim else array for name, array in tensors(1).items()}
    files, expected = [], []
    good = [deepcabac.compress(small, **options) for options in ({"sqnr": 20}, {"lossless": True})]
    for data in [*good, (ROOT / "tests" / "golden" / "scaled.dcb").read_bytes()]:
        parts = forge.Parts.of(data)
        for _ in range(150):
            plain = bytearray(parts.plain)
            at = int(rng.integers(len(plain)))
            plain[at] = int(rng.choice([plain[at] ^ 1 << int(rng.integers(8)), rng.integers(256)]))
            data = forge.Parts(parts.payload, bytes(plain)).file()
            if len(files) % 3 == 0:  # as it is, not coded
                data = forge.with_stored(parts.payload, b"\0" + plain)
            files.append(tmp_path / f"{len(files)}.dcb")
            files[-1].write_bytes(data)
            expected.append(in_python(data))
    outcomes = in_node(files)
    assert outcomes == expected
    assert {"DamagedFileError"} <= {one.get("error") for one in outcomes} and any("tensors" in one for one in outcomes)


def test_an_onnx_model_comes_back_as_python_restores_it(tmp_path):
    golden = ROOT / "tests" / "golden" / "onnx.dcb"
    model = deepcabac.decompress_checkpoint(golden, tmp_path / "model.onnx").read_bytes()
    (outcome,) = in_node([golden])
    assert outcome["model"] == hashlib.sha256(model).hexdigest()
