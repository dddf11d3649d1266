"""Decode .nnc files with NNCodec 2.1.3, and make some with it. A helper of bench/nnc_exchange.py, which runs it.

    PEER_PYTHON bench/peers/nncodec_exchange.py JOBS.json

JOBS.json is a list of jobs, done in order, each an object:

    {"decode": ["a.nnc", ...], "output": "a.npz", "repeat": N}    a sequence of updates: the last one's arrays
    {"encode": "a.npz", "output": "a.nnc", "settings": {...}, "repeat": N, "sequence": NAME}
                                              settings are those of nnc.compress; one sequence is one sender's updates

Prints a list of objects with "seconds" (best of N) and, if NNCodec failed, "error".
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from nncodec_worker import import_nncodec


def fresh() -> dict[str, Any]:
    """What NNCodec keeps from update to update."""
    return {"parameters": {}, "put_node_depth": {}, "device_id": None, "parameter_id": {}}


def decode(nnc: Any, job: dict[str, Any]) -> float:
    """Decode a sequence; the best time for its last stream."""
    streams = [bytearray(Path(name).read_bytes()) for name in job["decode"]]
    best = float("inf")
    for _ in range(job.get("repeat", 1)):
        base = fresh() if len(streams) > 1 else None
        for stream in streams:
            start = time.process_time()
            arrays = nnc.decompress(stream, verbose=False, approx_param_base=base, update_base_param=base is not None)
            seconds = time.process_time() - start
        best = min(best, seconds)
    with open(job["output"], "wb") as file:
        np.savez(file, **arrays)
    return best


def encode(nnc: Any, job: dict[str, Any], sequences: dict[str, dict[str, Any]]) -> float:
    """Encode arrays; the best time."""
    with np.load(job["encode"]) as archive:
        arrays = {name: archive[name] for name in archive.files}
    settings = dict(job["settings"])
    if job.get("sequence"):
        base = sequences.setdefault(job["sequence"], fresh())
        settings.update(approx_param_base=base, update_base_param=True)
    best = float("inf")
    for _ in range(job.get("repeat", 1)):
        start = time.process_time()
        stream = nnc.compress(arrays, bitstream_path=None, return_bitstream=True, verbose=False, **settings)
        best = min(best, time.process_time() - start)
    Path(job["output"]).write_bytes(stream)
    return best


def main() -> None:
    """Do the jobs."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    results: list[dict[str, Any]] = []
    sequences: dict[str, dict[str, Any]] = {}
    with contextlib.redirect_stdout(sys.stderr):
        nnc = import_nncodec()
        for job in jobs:
            try:
                seconds = decode(nnc, job) if "decode" in job else encode(nnc, job, sequences)
                results.append({"seconds": seconds})
            except (Exception, SystemExit) as error:
                results.append({"error": f"{type(error).__name__}: {str(error)[:200]}"})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
