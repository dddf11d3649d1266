"""Every byte of the standard's streams and of those of 2019, damaged: ``python attacks/sweep.py --values 2``.

Takes each golden stream and, where ../shared is there, each vector: cuts it at every length, gives each of its first
bytes every value, and each other byte ``--values`` values (a turned bit, then random ones). Whatever happens must be a
DeepCabacError, or arrays of the shapes that the stream declares, in bounded memory (RLIMIT_AS) and time. Prints
outcomes and the slowest; exits with 1 and keeps the stream on anything else.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import deepcabac
from deepcabac import dc2019, nnc
from deepcabac.nnc import syntax

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "nnc"
VECTORS = ROOT.parent / "shared" / "vectors"
#: Bytes that get every value: start unit, model parameter set, topology, the first tensor's header.
HEAD = 64
MAX_BYTES = 1 << 22
#: Memory above what the process has at the start, and seconds that a stream may take.
MEMORY, SECONDS = 256 << 20, 2.0


class Seed(NamedTuple):
    """A good stream, and how it is opened."""

    name: str
    data: bytes
    open: Callable[[bytes], None]


def _open_nnc(bases: list[bytes]) -> Callable[[bytes], None]:
    def open_(data: bytes) -> None:
        arrays = nnc.decode(data, bases, max_bytes=MAX_BYTES, threads=1)
        headers = [header for header, _, _ in syntax.read(data).units]
        shapes = {name: shape for header in headers for name, shape in zip(header.names, header.shapes, strict=True)}
        assert {name: array.shape for name, array in arrays.items()} == shapes
        assert all(array.dtype in (np.float32, np.int32) for array in arrays.values())

    return open_


def _open_2019(data: bytes) -> None:
    for layer in dc2019.decode(data):
        assert layer.dtype == np.float32 and layer.size == math.prod(layer.shape)


def seeds() -> Iterator[Seed]:
    """All that there are."""
    golden_bases = {"update1": ["dependent"], "update2": ["dependent", "update1"]}
    for path in sorted(GOLDEN.glob("*.nnc")):
        bases = [(GOLDEN / f"{name}.nnc").read_bytes() for name in golden_bases.get(path.stem, [])]
        yield Seed(f"golden/{path.name}", path.read_bytes(), _open_nnc(bases))
    yield Seed("golden/layers.dc2019", (GOLDEN / "layers.dc2019").read_bytes(), _open_2019)
    for path in sorted((VECTORS / "nnc").glob("*.nnc")):
        stem, _, step = path.stem.rpartition("_step")
        before = [path.with_name(f"{stem}_step{number}.nnc").read_bytes() for number in range(int(step) if stem else 0)]
        yield Seed(f"nnc/{path.name}", path.read_bytes(), _open_nnc(before))
    for path in sorted((VECTORS / "dc2019").glob("*.npz")):
        with np.load(path) as vector:
            yield Seed(f"dc2019/{path.stem}", vector["stream"].tobytes(), _open_2019)


def mutants(data: bytes, values: int, every: int = 1) -> Iterator[bytes]:
    """Cut at every length, and with each byte changed; with ``every`` > 1, a sample of these."""
    random = np.random.default_rng(len(data))
    yield from (data[:end] for end in range(0, len(data), every))
    for at in range(0, len(data), every):
        whole = at < HEAD and every == 1
        for value in range(256) if whole else [1 << at % 8 ^ data[at], *random.integers(256, size=values - 1).tolist()]:
            if value != data[at]:
                yield data[:at] + bytes([value]) + data[at + 1 :]


def sweep(seed: Seed, values: int, every: int = 1) -> tuple[Counter[str], float]:
    """Open all mutants of a stream. Returns outcomes and the slowest's seconds of CPU time."""
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    seed.open(seed.data)
    for mutant in mutants(seed.data, values, every):
        start = time.process_time()
        try:
            seed.open(mutant)
            outcome = "opened"
        except deepcabac.DeepCabacError as error:
            outcome = type(error).__name__
        except BaseException as error:
            error.data = mutant  # type: ignore[attr-defined]
            raise
        taken = time.process_time() - start
        if taken > SECONDS:
            error_: Any = AssertionError(f"a mutant took {taken:.1f} s")
            error_.data = mutant
            raise error_
        slowest = max(slowest, taken)
        outcomes[outcome] += 1
    return outcomes, slowest


def confine() -> None:
    """Let this process take no more than :data:`MEMORY` from now on."""
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=2, help="of each byte behind the head (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1, help="only every N-th length and byte (default: all)")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only the I-th of N parts of the streams")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    chosen = list(seeds())[part - 1 :: parts]
    confine()
    for seed in chosen:
        try:
            outcomes, slowest = sweep(seed, given.values, given.every)
        except BaseException as error:
            traceback.print_exc()
            if hasattr(error, "data"):
                Path("mutant.bin").write_bytes(error.data)
                print(f"{seed.name}: the stream is mutant.bin", file=sys.stderr)
            sys.exit(1)
        counted = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        print(f"{seed.name}: {counted}; slowest {1000 * slowest:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
