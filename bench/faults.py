"""What is left when processes are killed, disks fill up and file systems fail: counts, not times.

    python bench/faults.py [--kills 250] [--only NAME...] [--seed 0] [--results]

Every fault is real: SIGKILL at a random moment, or an error that a shim (C, loaded before the C library; needs `cc` and
Linux) returns from a system call on files of this bench alone. After each one the target must be what it was before or
what the command writes, byte for byte; after one further run without faults nothing temporary may be left. Anything
else is counted as wrong, and the bench then exits with code 1.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import _common
import numpy as np

import deepcabac

CAVEATS = (
    "A moment is uniform over 1.2 times the time that an undisturbed run takes, from the start of the process; a run "
    "that was faster counts as ended by itself.",
    "Commands run with 2 threads on files in a temporary folder.",
)
COMMAND = [sys.executable, "-c", "from deepcabac.cli import main; main()"]
SCORE = """
import numpy as np
def score(tensors):
    return -float(sum(np.abs(array.astype(float)).sum() for array in tensors.values()))
"""
#: Fails the FAULT_AT-th of the calls FAULT_CALL on a file or folder whose path contains FAULT_IN, with errno
#: FAULT_ERRNO, or (FAULT_CALL=clock) lets the wall clock jump ten years to and fro.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
static int mine(int fd) {
    char link[64], path[4096];
    const char *in = getenv("FAULT_IN");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0 || !in) return 0;
    path[n] = 0;
    return strstr(path, in) != 0;
}
static int fails(const char *call) {
    static int count;
    const char *which = getenv("FAULT_CALL"), *at = getenv("FAULT_AT"), *code = getenv("FAULT_ERRNO");
    if (!which || strcmp(which, call)) return 0;
    if (__atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) != atoi(at)) return 0;
    const char *log = getenv("FAULT_LOG");
    FILE *(*open)(const char *, const char *) = dlsym(RTLD_NEXT, "fopen");
    FILE *file = open(log, "w");
    if (file) fclose(file);
    errno = atoi(code);
    return 1;
}
ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (mine(fd) && fails("write")) {
        int code = errno;
        if (size > 1) real(fd, data, size / 2); /* as a disk does it: in part */
        errno = code;
        return -1;
    }
    return real(fd, data, size);
}
ssize_t read(int fd, void *data, size_t size) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    return mine(fd) && fails("read") ? -1 : real(fd, data, size);
}
int close(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "close");
    int failed = mine(fd) && fails("close"), code = errno, result = real(fd);
    if (!failed) return result;
    errno = code;
    return -1;
}
int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return strstr(to, getenv("FAULT_IN") ? getenv("FAULT_IN") : "\n") && fails("rename") ? -1 : real(from, to);
}
int clock_gettime(clockid_t which, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    static int turn;
    int result = real(which, now);
    const char *call = getenv("FAULT_CALL");
    if (which == CLOCK_REALTIME && call && !strcmp(call, "clock"))
        now->tv_sec += (__atomic_add_fetch(&turn, 1, __ATOMIC_SEQ_CST) & 1 ? 1 : -1) * 315360000;
    return result;
}
"""


@dataclass
class Case:
    """A command and what it writes."""

    name: str
    arguments: list[str]
    outputs: list[str]  #: in the folder `out`; the first one decides
    old: bytes | None = b"what was there before"
    new: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Counts:
    """What came of one kind of fault."""

    tried: int = 0
    hit: int = 0  #: runs that the fault reached
    old: int = 0
    new: int = 0
    wrong: list[str] = field(default_factory=list)
    left: int = 0  #: temporary files and folders right after


def cases() -> list[Case]:
    """All commands."""
    return [
        Case("compress", ["compress", "in/model.npz", "-o", "out/model.dcb", "--force"], ["model.dcb"]),
        Case("decompress", ["decompress", "in/model.dcb", "-o", "out/model.npz", "--force"], ["model.npz"]),
        Case("compress a folder", ["compress", "in/folder", "-o", "out/folder"], ["folder"], None),
        Case("decompress a folder", ["decompress", "in/folder-dcb", "-o", "out/folder"], ["folder"], None),
        Case(
            "search",
            [
                *("search", "in/small.npz", "-o", "out/s.dcb", "--eval", "score.py:score", "--max-drop", "30"),
                *("--lower-is-better", "--evaluations", "6", "--force"),
            ],
            ["s.dcb"],
        ),
    ]


def prepare(folder: Path, seed: int) -> None:
    """Models to compress, and what was compressed."""
    rng = np.random.default_rng(seed)
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    (folder / "score.py").write_text(SCORE)
    tensors = {f"w{k}": rng.standard_normal((400, 300)).astype(np.float32) for k in range(12)}
    np.savez(folder / "in" / "model.npz", **tensors)
    np.savez(folder / "in" / "small.npz", w=tensors["w0"][:40])
    np.savez(folder / "in" / "base.npz", **{name: array + np.float32(0.01) for name, array in tensors.items()})
    deepcabac.save_file(tensors, folder / "in" / "model.dcb")
    (folder / "in" / "folder").mkdir()
    for number in range(3):
        np.savez(folder / "in" / "folder" / f"{number}.npz", w=tensors[f"w{number}"])
    (folder / "in" / "folder" / "config.json").write_text("{}")
    deepcabac.compress_folder(folder / "in" / "folder", folder / "in" / "folder-dcb")


def started(case: Case, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The command, running."""
    return subprocess.Popen(
        [*COMMAND, *case.arguments, "--threads", "2"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), **environment},
    )


def finished(case: Case, folder: Path, **environment: str) -> tuple[int, str]:
    """Exit code of the command, and what it said."""
    process = started(case, folder, **environment)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def state(case: Case, folder: Path) -> dict[str, bytes] | None:
    """The target, file by file; None if there is none."""
    target = folder / "out" / case.outputs[0]
    if target.is_dir():
        files = [file for file in sorted(target.rglob("*")) if file.is_file()]
        return {str(file.relative_to(target)): file.read_bytes() for file in files}
    return {"": target.read_bytes()} if target.exists() else None


def reset(case: Case, folder: Path) -> None:
    """The target as it was before; what is temporary stays."""
    for path in (folder / "out").iterdir():
        if not path.name.startswith(".deepcabac"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if case.old is not None:
        (folder / "out" / case.outputs[0]).write_bytes(case.old)


def temporary(folder: Path) -> list[Path]:
    """Everything unfinished."""
    return [path for place in ("out", "tmp", "in") for path in (folder / place).rglob("*deepcabac*.partial")]


def judge(case: Case, folder: Path, counts: Counts, what: str) -> None:
    """Count what is there now."""
    present = state(case, folder)
    if present == case.new:
        counts.new += 1
    elif present == (None if case.old is None else {"": case.old}):
        counts.old += 1
    else:
        counts.wrong.append(f"{case.name}: {what}: {sorted(present or {})} is neither the old nor the new")
    counts.left += len(temporary(folder))


def clean(case: Case, folder: Path, counts: Counts) -> None:
    """One run without faults must leave nothing temporary."""
    reset(case, folder)
    code, said = finished(case, folder)
    if code or state(case, folder) != case.new:
        counts.wrong.append(f"{case.name}: the next run fails: {said}")
    counts.wrong += [f"{case.name}: left: {path.name}" for path in temporary(folder)]


def learn(case: Case, folder: Path) -> None:
    """What the command writes, twice the same, and how long it takes."""
    for _ in range(2):
        reset(case, folder)
        start = time.perf_counter()
        code, said = finished(case, folder)
        case.seconds = time.perf_counter() - start
        found = state(case, folder)
        if code or found is None or (case.new and found != case.new):
            raise SystemExit(f"{case.name}: exit code {code}: {said}")
        case.new = found


def kill(case: Case, folder: Path, count: int, rng: random.Random) -> Counts:
    """SIGKILL at random moments."""
    counts = Counts()
    for _ in range(count):
        reset(case, folder)
        moment = rng.uniform(0, 1.2 * case.seconds)
        process = started(case, folder)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        counts.tried += 1
        counts.hit += process.returncode == -signal.SIGKILL
        judge(case, folder, counts, f"killed after {moment:.3f} s")
    clean(case, folder, counts)
    return counts


def injected(case: Case, folder: Path, shim: Path, call: str, errno: int, where: str) -> Counts:
    """An error at the first, second .. of the calls, later at some, until a run reaches no more of them."""
    counts, log = Counts(), folder / "hit"
    at = 0
    while True:
        at += 1 + at // 20  # each of the first, then one of ever more
        reset(case, folder)
        log.unlink(missing_ok=True)
        code, said = finished(
            case,
            folder,
            LD_PRELOAD=str(shim),
            FAULT_CALL=call,
            FAULT_AT=str(at),
            FAULT_ERRNO=str(errno),
            FAULT_IN=where,
            FAULT_LOG=str(log),
        )
        counts.tried += 1
        if not log.exists():
            break
        counts.hit += 1
        judge(case, folder, counts, f"{call} {at}")
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        if (code not in (0, 1, 2)) or (code and len(lines) != 1) or "Traceback" in said:
            counts.wrong.append(f"{case.name}: {call} {at}: exit code {code}: {said[-300:]}")
        if code == 0 and state(case, folder) != case.new:
            counts.wrong.append(f"{case.name}: {call} {at}: exit code 0, and the file is not there")
    clean(case, folder, counts)
    return counts


def clock(case: Case, folder: Path, shim: Path) -> Counts:
    """The wall clock jumps."""
    counts = Counts(tried=1, hit=1)
    reset(case, folder)
    code, said = finished(case, folder, LD_PRELOAD=str(shim), FAULT_CALL="clock")
    judge(case, folder, counts, "clock")
    if code:
        counts.wrong.append(f"{case.name}: clock: exit code {code}: {said[-300:]}")
    clean(case, folder, counts)
    return counts


def together(case: Case, folder: Path, count: int) -> Counts:
    """Two processes write the same target."""
    counts = Counts()
    for _ in range(count):
        reset(case, folder)
        pair = [started(case, folder), started(case, folder)]
        codes = []
        for process in pair:
            _, said = process.communicate()
            codes.append(process.returncode)
            if process.returncode and "error: " not in said:
                counts.wrong.append(f"{case.name}: two at once: {said[-300:]}")
        counts.tried += 1
        counts.hit += 1
        judge(case, folder, counts, "two at once")
        if 0 not in codes:
            counts.wrong.append(f"{case.name}: two at once: exit codes {codes}")
    clean(case, folder, counts)
    return counts


def changing_base(folder: Path, count: int, rng: random.Random) -> Counts:
    """The base of an update is overwritten in place while it is read."""
    counts = Counts()
    base = folder / "in" / "base.npz"
    whole = base.read_bytes()
    command = ["compress", "in/model.npz", "-o", "out/u.dcb", "--base", "in/base.npz", "--lossless"]
    case = Case("update", command, ["u.dcb"], None)
    learn(case, folder)
    model = dict(np.load(folder / "in" / "model.npz"))
    for _ in range(count):
        reset(case, folder)
        base.write_bytes(whole)
        moment = rng.uniform(0, case.seconds)

        def overwrite(moment: float = moment) -> None:
            time.sleep(moment)
            with base.open("r+b") as file:
                for at in range(len(whole) // 4, len(whole), 4096):
                    file.seek(at)
                    file.write(bytes(64))

        writer = threading.Thread(target=overwrite)
        writer.start()
        code, _ = finished(case, folder)
        writer.join()
        counts.tried += 1
        counts.hit += code != 0 or state(case, folder) != case.new
        base.write_bytes(whole)
        path = folder / "out" / "u.dcb"
        if not path.exists():
            counts.old += 1
            continue
        try:
            back = deepcabac.load_file(path, base=base)
        except deepcabac.OptionError:  # an update of what was read, which is no base any more, and says so
            counts.new += 1
            continue
        counts.new += 1
        if not all(np.array_equal(back[name], array) for name, array in model.items()):
            counts.wrong.append("update: applied to its base it gives other values")
    base.write_bytes(whole)
    return counts


def main() -> None:
    """Measure and print."""
    options = _common.parser(__doc__)
    options.add_argument("--kills", type=int, default=250, help="for each command (default: %(default)s)")
    options.add_argument("--only", nargs="*", metavar="NAME", help="commands")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    about = _common.environment()
    _common.print_head("Faults", CAVEATS, about)
    rng = random.Random(given.seed)
    rows: list[list[str]] = []
    wrong: list[str] = []

    def add(name: str, fault: str, run: Callable[[], Counts]) -> None:
        counts = run()
        numbers = (counts.hit, counts.old, counts.new, len(counts.wrong))
        rows.append([name, fault, *map(str, numbers)])
        wrong.extend(counts.wrong)
        _common.note(" | ".join(rows[-1]) + f" | {counts.left} temporary right after")
        for line in counts.wrong[:5]:
            _common.note("    " + line)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "tmp").mkdir()
        prepare(folder, given.seed)
        shim = folder / "shim.so"
        (folder / "shim.c").write_text(SHIM)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, folder / "shim.c", "-ldl"], check=True)
        count = max(given.kills // 10, 1)
        for case in cases():
            if given.only and case.name not in given.only:
                continue
            learn(case, folder)
            add(case.name, "kill -9", lambda case=case: kill(case, folder, given.kills, rng))  # type: ignore[misc]
            for fault, call, errno, where in (
                ("no space left, at each write", "write", 28, str(folder / "out")),
                ("error on close", "close", 5, str(folder / "out" / ".deepcabac")),
                ("error on rename", "rename", 5, "out/"),
                ("error at each read", "read", 5, str(folder / "in")),
            ):
                add(
                    case.name,
                    fault,
                    lambda case=case, call=call, errno=errno, where=where: injected(  # type: ignore[misc]
                        case, folder, shim, call, errno, where
                    ),
                )
            add(case.name, "clock jumps 20 years", lambda case=case: clock(case, folder, shim))  # type: ignore[misc]
            add(case.name, "two at once", lambda case=case: together(case, folder, count))  # type: ignore[misc]
        if not given.only or "update" in given.only:
            add("update", "the base changes", lambda: changing_base(folder, count, rng))
    heads = ["command", "fault", "times", "old file", "new file", "anything else"]
    _common.print_table(heads, rows)
    _common.write_json(given.json, about, heads=heads, rows=rows, wrong=wrong)
    _common.save_table(given.results, "faults", about, heads, rows, keys=2)
    if wrong:
        print(json.dumps(wrong, indent=1))
        raise SystemExit(1)


if __name__ == "__main__":
    main()
