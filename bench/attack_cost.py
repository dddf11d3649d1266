"""What the most expensive indexes that we know cost a reader: CPU seconds for each MiB of the file.

    python bench/attack_cost.py [--mebibytes 1 4] [--only NAME...] [--results]

An attacker pays for bytes. Each of these files has right checksums, and an index that is as large as a file of its size
may have, full of one thing: empty tensors, ties, tiny chunks, codebooks, names, metadata. The rest of the file is one
raw tensor. Each is opened, inspected, verified, loaded and restored, one after the other, with `max_bytes` of 1 GiB, in
a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import _common

sys.path.insert(0, str(_common.ROOT / "attacks"))

import forge
import numpy as np

import deepcabac
from deepcabac import _core
from deepcabac.dcb import container
from deepcabac.dcb.container import EQUAL, HEADER, LEVELS, RAW, TIED
from deepcabac.dcb.reader import open_bytes
from deepcabac.quantize import exact
from deepcabac.wire import blob, varint

MIB = 1 << 20
#: Seconds for each MiB of a file that its index may cost; more is marked.
BAR = 0.5
#: A step of one that takes longer is given up.
PATIENCE = 120
CAVEATS = (
    "CPU seconds of all threads, one run, each step in a process that has opened a small file before.",
    "open: reads and checks the index. inspect: what `deepcabac inspect` prints. verify: everything decoded. load: all "
    "arrays. restore: a checkpoint of the kind that the file names.",
    f"Divided by the file's MiB, the payload too. In bold what is above {BAR} for the index.",
)

Maker = Callable[[int], tuple[list[bytes], bytes]]
F32, U8, I32, C64 = 2, 14, 8, 16


def _names() -> Callable[[], bytes]:
    """Short names, each once: 0, 1, 2 .. in base 64."""
    signs = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
    number = -1

    def following() -> bytes:
        nonlocal number
        number += 1
        left, name = number, bytearray()
        while left or not name:
            name.append(signs[left & 63])
            left >>= 6
        return bytes(name)

    return following


def _repeated(make: Callable[[bytes, int], tuple[bytes, bytes]], first: bytes = b"", code: bytes = b"") -> Maker:
    """As many entries as fit ``space`` bytes of an index: ``make(name, number) -> entry, its payload``."""

    def fill(space: int) -> tuple[list[bytes], bytes]:
        name, entries, payload, used = _names(), [first] if first else [], bytearray(code), len(first)
        while used < space:
            entry, more = make(b"#" + name(), len(entries))
            entries.append(entry)
            payload += more
            used += len(entry)
        return entries, bytes(payload)

    return fill


def _chunked(code: bytes) -> bytes:
    return varint(len(code)) + struct.pack("<I", zlib.crc32(code))


def _coded() -> tuple[bytes, bytes, float]:
    """Parameters, code and step of a small tensor."""
    weights = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    data = deepcabac.compress({"w": weights}, overrides={"w": {"step": 0.5}})
    with open_bytes(data, max_bytes=None, threads=1) as file:
        (entry,) = file._index.entries
        assert entry.method == LEVELS
        return entry.params, file._read(entry.chunks[0].offset, entry.chunks[0].length), entry.step


PARAMS, CODE, STEP = _coded()
RAW_ONE = forge.entry(b"!", F32, (1,), RAW, struct.pack("<I", zlib.crc32(bytes(4))))


def _levels(name: bytes, number: int) -> tuple[bytes, bytes]:
    return forge.entry(name, F32, (8, 8), LEVELS, forge.levels_rest([CODE], PARAMS, STEP)), CODE


def _book(name: bytes, number: int) -> tuple[bytes, bytes]:
    code = _core.encode_indices(np.zeros(1, np.uint16), 1, 0, 1)
    rest = b"\1\0\1\1" + b"\0" + varint(len(code)) + b"\0" + struct.pack("<I", zlib.crc32(code))
    return forge.entry(name, U8, (1,), exact.CODEBOOK, rest), code


def _large_book(name: bytes, number: int) -> tuple[bytes, bytes]:
    """Entries 0, 1, .. 4095 of 8 bytes, the differences of which are all 1 or 0: they compress well."""
    steps = np.diff(np.arange(4096, dtype=np.uint64), prepend=np.uint64(0))
    planes = steps.astype(">u8").view(np.uint8).reshape(-1, 8).T.tobytes()
    code = _core.encode_indices(np.zeros(1, np.uint16), 4096, 0, 1)
    rest = varint(4096) + b"\0\1\1" + planes + varint(len(code)) + b"\0" + struct.pack("<I", zlib.crc32(code))
    return forge.entry(name, 11, (1,), exact.CODEBOOK, rest), code


def _chunks(space: int) -> tuple[list[bytes], bytes]:
    """One tensor of chunks of one level each."""
    count = space // 6
    code = bytes(count)  # a byte each; nobody gets that far unless the chunk decodes
    rest = struct.pack("<f", 1.0) + b"\0\0" + blob(bytes([0, 96, 1, 1]))
    rest += (b"\1" + struct.pack("<I", zlib.crc32(b"\0"))) * count
    return [forge.entry(b"w", F32, (count, 1), LEVELS, rest)], code


def _rates(name: bytes, number: int) -> tuple[bytes, bytes]:
    return forge.entry(name, F32, (1,), exact.CHANGES, b"\0" + blob(b"\0") + varint(0)), b""


MAKERS: dict[str, Maker] = {
    "empty tensors": _repeated(lambda name, _: (forge.entry(name, U8, (0,)), b"")),
    "tied": _repeated(lambda name, _: (forge.entry(name, F32, (1,), TIED, b"\0"), b""), RAW_ONE, bytes(4)),
    "equal": _repeated(
        lambda name, number: (
            (RAW_ONE.replace(b"\1!", blob(name)), bytes(4))
            if number % 65 == 0
            else (forge.entry(name, F32, (1,), EQUAL, varint(number - number % 65)), b"")
        )
    ),
    "raw tensors of a byte": _repeated(
        lambda name, _: (forge.entry(name, U8, (), RAW, struct.pack("<I", zlib.crc32(b"\7"))), b"\7")
    ),
    "32 dimensions": _repeated(lambda name, _: (forge.entry(name, U8, (0,) * 32), b"")),
    "complex": _repeated(lambda name, _: (forge.entry(name, C64, (0,)), b"")),
    "packed codes": _repeated(lambda name, _: (forge.entry(name, 32 + I32, (0,)), b"")),
    "levels": _repeated(_levels),
    "chunks of one level": _chunks,
    "codebooks of one entry": _repeated(_book),
    "large codebooks": _repeated(_large_book),
    "unchanged": _repeated(lambda name, _: (forge.entry(name, F32, (1,), exact.UNCHANGED), b"")),
    "no changes": _repeated(_rates),
    "one name": lambda space: ([forge.entry(b"n" * space, U8, (0,))], b""),
    "names of 1 kB": _repeated(lambda name, _: (forge.entry(name + b"x" * 1000, U8, (0,)), b"")),
}


def _extras() -> dict[str, Callable[[int], tuple[str, bytes]]]:
    """Metadata of kinds of checkpoints, for as many bytes."""
    return {
        "zeros": lambda space: ("npz", bytes(space)),
        "noise": lambda space: ("onnx", np.random.default_rng(0).bytes(space)),
        "JSON: deep": lambda space: ("safetensors", b"[" * space),
        "JSON: numbers": lambda space: ("safetensors", b"[" + b"0," * (space // 2 - 1) + b"0]"),
        "JSON: objects": lambda space: ("safetensors", b"[" + b"{}," * (space // 3 - 1) + b"0]"),
        "structure: lists": lambda space: ("torch", _nested(space)),
        "structure: numbers": lambda space: ("torch", b'["l",[' + b'["v",0],' * (space // 8 - 2) + b'["v",0]]]'),
        "graph: empty nodes": lambda space: ("onnx", _graph(b"\x0a\0", space)),
        "graph: nodes": lambda space: ("onnx", _graph(b"\x0a\4\x0a\2ab", space)),
        "graph: deep": lambda space: ("onnx", _deep_graph(space)),
    }


def _nested(space: int) -> bytes:
    return b'["l",[' * (space // 8) + b"]]" * (space // 8)


def _graph(node: bytes, space: int) -> bytes:
    body = node * (space // len(node))
    return b"\x08\x09\x3a" + varint(len(body)) + body


def _deep_graph(space: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    body = b""
    while len(body) < min(space, 1 << 16):
        for field in (6, 5, 1):  # g of an attribute, attribute of a node, node of a graph
            body = bytes([field << 3 | 2]) + varint(len(body)) + body
    return b"\x08\x09\x3a" + varint(len(body)) + body


def file_of(name: str, size: int) -> bytes:
    """The file of about ``size`` bytes."""
    space = min(container.MAX_INDEX, container.FREE_INDEX + size) - 200
    extra = _extras().get(name)
    if extra is not None:
        kind, data = extra(space)
        entries, payload = [], b""
        plain = forge.plain_index([], kind=kind.encode(), extra=data)
    else:
        entries, payload = MAKERS[name](space)
        plain = forge.plain_index(entries)
    coded = _core.encode_bytes(plain) if len(plain) < 8 * MIB else b""
    rest = size - HEADER.size - len(coded) - len(payload) - 8
    filler = bytes(max(rest, 0) // container.RAW_CHUNK * container.RAW_CHUNK + max(rest, 0) % container.RAW_CHUNK)
    behind = bytes(32) + b"\0" if name in ("unchanged", "no changes") else b""
    if filler:
        crcs = b"".join(
            struct.pack("<I", zlib.crc32(filler[at : at + container.RAW_CHUNK]))
            for at in range(0, len(filler), container.RAW_CHUNK)
        )
        last = forge.entry(b"filler", U8, (len(filler),), RAW, crcs)
        data = {} if extra is None else {"kind": kind.encode(), "extra": data}
        plain = forge.plain_index([*entries, last], **data)
        payload += filler
    return forge.Parts(payload, plain + behind).file()


def _restored(path: Path) -> None:
    with deepcabac.open_file(path, max_bytes=1 << 30) as file:
        kind = file.kind or "npz"
    suffix = {"torch": ".pt"}.get(kind, "." + kind)
    with tempfile.TemporaryDirectory() as folder:
        deepcabac.decompress_checkpoint(path, Path(folder) / f"restored{suffix}", max_bytes=1 << 30)


def _inspected(path: Path) -> None:
    from deepcabac.cli import report

    with deepcabac.open_file(path, max_bytes=1 << 30) as file:
        report.inspected(str(path), file, 100)


def _verified(path: Path) -> None:
    with deepcabac.open_file(path, max_bytes=1 << 30) as file:
        for _ in file.check():
            pass


STEPS: dict[str, Callable[[Path], None]] = {
    "open": lambda path: deepcabac.open_file(path, max_bytes=1 << 30).close(),
    "inspect": _inspected,
    "verify": _verified,
    "load": lambda path: deepcabac.load_file(path, max_bytes=1 << 30) and None,
    "restore": _restored,
}


def measure(path: Path, step: str) -> tuple[float, str]:
    """CPU seconds of a step, and the error that it ended in."""
    small = io.BytesIO(deepcabac.compress({"w": np.ones((8, 8), np.float32)}))
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder) / "good.dcb"
        good.write_bytes(small.getvalue())
        with contextlib.suppress(deepcabac.DeepCabacError):
            STEPS[step](good)
    start = time.process_time()
    try:
        STEPS[step](path)
        said = ""
    except deepcabac.DeepCabacError as error:
        said = str(error)
    return time.process_time() - start, said


def main() -> None:
    """Measure and print."""
    options = _common.parser(__doc__)
    options.add_argument("--mebibytes", type=float, nargs="*", default=[1.0, 4.0], help="sizes of the files")
    options.add_argument("--only", nargs="*", metavar="NAME", help="these alone")
    options.add_argument("--step", nargs=2, metavar=("STEP", "FILE"), help="measure one step (used by itself)")
    given = options.parse_args()
    if given.step:
        print(json.dumps(measure(Path(given.step[1]), given.step[0])))
        return
    about = _common.environment()
    _common.print_head("Cost of a hostile index", CAVEATS, about)
    names = given.only or [*MAKERS, *_extras()]
    heads = ["index full of", "MiB", *(f"{step} s/MiB" for step in STEPS)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for size in given.mebibytes:
                path = Path(folder) / "attack.dcb"
                path.write_bytes(file_of(name, int(size * MIB)))
                mib = path.stat().st_size / MIB
                row = [name, f"{mib:.2f}"]
                for step in STEPS:
                    _common.note(f"{name}, {size} MiB: {step}")
                    command = [sys.executable, __file__, "--step", step, str(path)]
                    try:
                        run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
                    except subprocess.TimeoutExpired:
                        row.append(f"more than {PATIENCE / mib:.0f}")
                        continue
                    except subprocess.CalledProcessError as error:
                        raise SystemExit(f"{name}: {step}: {error.stderr[-2000:]}") from error
                    seconds, said = json.loads(run.stdout)
                    if said:
                        _common.note("    " + said[-120:])
                    cell = f"{seconds / mib:.2f}"
                    row.append(f"**{cell}**" if seconds / mib > BAR and step in ("open", "inspect") else cell)
                rows.append(row)
                _common.note(" | ".join(row))
    _common.print_table(heads, rows)
    _common.write_json(given.json, about, heads=heads, rows=rows)
    _common.save_table(given.results, "attack_cost", about, heads, rows, keys=2, timed=True)


if __name__ == "__main__":
    main()
