"""Speed of the npm package beside the native decoder, and how soon a model is there over a link.

    python bench/javascript.py [--rounds 3] [--onnx FILE.onnx] [--results]

Needs node, js/build.sh run, and for Chromium `npm install` in examples/web. Every decoder gets the same files, MiniLM's
matrices with each preset, in memory, and works on one thread; the best of the rounds counts. With an ONNX model (such
as `examples/web/dist/models/efficientnet.onnx`, which `build.py --efficientnet` makes) it also prints the time until
the weights are there: of the model with brotli 11, which a browser undoes while it loads, and of its .dcb file, decoded
in Chromium on one thread after the download.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import time
from pathlib import Path

import _common
import numpy as np

import deepcabac

SETTINGS = {
    "fast": {"preset": "fast", "sqnr": 30.0},
    "default": {"sqnr": 30.0},
    "small": {"preset": "small", "sqnr": 30.0},
    "lossless": {"lossless": True},
}
PLACES = ("node simd", "node plain", "chromium simd", "chromium plain")
LINKS = (20e6, 100e6)  # bits per second
WEIGHTS = 8_000_000  # about so many of MiniLM's
CAVEATS = (
    "All decode the same files from memory to arrays in memory, on one thread; every checksum is checked. The best of "
    "the rounds counts, of the processor's time. Native code uses AVX2 where the processor has it; WebAssembly has "
    "vectors of 128 bits.",
    "Time over a link is bytes / link, and for .dcb files decoding on one thread after the whole download, though it "
    "can be done while the file comes. brotli's own time, and what ONNX Runtime needs, are left out.",
)


def native_seconds(data: bytes, rounds: int) -> float:
    """Seconds of the native decoder on one thread."""
    best = math.inf
    for _ in range(rounds):
        start = time.process_time()
        deepcabac.decompress(data, threads=1)
        best = min(best, time.process_time() - start)
    return best


def brotli_bytes(path: Path) -> int:
    """Bytes of a file after brotli at quality 11, by Node's own library."""
    program = """
        const { brotliCompressSync, constants } = require("node:zlib");
        const data = require("node:fs").readFileSync(process.argv[1]);
        const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_LGWIN]: 24 };
        console.log(brotliCompressSync(data, { params }).length);"""
    done = subprocess.run(["node", "-e", program, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    """Measures and prints."""
    parser = _common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="a model whose time to load is printed")
    options = parser.parse_args()
    tensors: _common.Tensors = {}
    for name, matrix in _common.load_matrices(_common.minilm_path()).items():
        rows = min(len(matrix), (WEIGHTS - _common.count(tensors)) // matrix.shape[1])
        if rows > 0:
            tensors[name] = np.ascontiguousarray(matrix[:rows])
    weights = _common.count(tensors)
    about = _common.environment()
    _common.print_head("The npm package's speed", CAVEATS, about)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {what: folder / f"{what}.dcb" for what in SETTINGS}
        for what, path in files.items():
            path.write_bytes(deepcabac.compress(tensors, **SETTINGS[what]))
        if options.onnx is not None:
            files["onnx"] = folder / "onnx.dcb"
            deepcabac.compress_checkpoint(options.onnx, files["onnx"])
        native = {what: native_seconds(path.read_bytes(), options.rounds) for what, path in files.items()}
        bench = Path(__file__).resolve().parents[1] / "js" / "bench" / "bench.js"
        command = ["node", str(bench), str(options.rounds), *map(str, files.values())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = json.loads(done.stdout)
        sizes = {what: path.stat().st_size for what, path in files.items()}
        seconds = {what: seconds[str(path)] for what, path in files.items()}
    table = []
    for what in SETTINGS:
        speeds = [weights / native[what] / 1e6, *(weights / seconds[what][place] / 1e6 for place in PLACES)]
        bits = 8 * sizes[what] / weights
        table.append([what, f"{bits:.2f}", *(f"{one:.1f} ({one / speeds[0]:.2f})" for one in speeds)])
    print(f"Million weights per second on one thread, and over the native decoder's; {weights:,} weights")
    _common.print_table(["preset", "bits per weight", "native", *PLACES], table)
    shown = ("chromium simd", "node simd", "chromium plain")
    picked = [[row[0], row[2], *(row[3 + PLACES.index(place)] for place in shown)] for row in table]
    heads = ["preset", "native", "Chromium", "Node", "Chromium without SIMD"]
    _common.save_table(options.results, "javascript", about, heads, picked, timed=True)
    results = {"weights": weights, "native": native, "seconds": seconds, "bytes": sizes}
    if options.onnx is not None:
        packed, decoding = brotli_bytes(options.onnx), seconds["onnx"]["chromium simd"]
        raw = options.onnx.stat().st_size
        print(f"{options.onnx.name}: {raw:,} bytes; brotli {packed:,}; .dcb {sizes['onnx']:,}\n")
        lines = [
            [f"{link / 1e6:.0f} Mbit/s", f"{8 * packed / link:.2f}", f"{8 * sizes['onnx'] / link + decoding:.2f}"]
            for link in LINKS
        ]
        heads = ["link", f"ONNX with brotli, {packed:,} bytes, s", f".dcb, {sizes['onnx']:,} bytes, s"]
        _common.print_table(heads, lines)
        _common.save_table(options.results, "javascript_links", about, heads, lines, timed=True)
        results["brotli"] = packed
    _common.write_json(options.json, about, **results)


if __name__ == "__main__":
    main()
