"""Fuzzes the Rust core with libFuzzer: ``python fuzz/run.py [TARGET ...]``. See README.md.

Needs rustc and, of a clang, the library that has libFuzzer (Debian, Ubuntu: libclang-rt-19-dev or another version); no
crates.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
#: Each target with the most bytes of an input.
TARGETS = {
    "index": 1024,
    "stored": 128,
    "levels": 512,
    "default": 256,
    "fast": 256,
    "sparse": 256,
    "small": 256,
    "exact": 256,
    "floats": 512,
    "codebook": 256,
    "updates": 256,
    "nnc": 256,
    "dc2019": 96,
    "differential": 256,
}
#: Builds: as it is shipped; and with AddressSanitizer and checks for overflow.
BUILDS = {"plain": [], "checked": ["-Zsanitizer=address", "-Coverflow-checks=on", "-Cdebug-assertions=on"]}
COVERAGE = ["level=3", "inline-8bit-counters", "pc-table"]
MOST_MEGABYTES = 2048
MOST_SECONDS = 20  # of one input


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Fuzz the Rust core.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is given")
    parser.add_argument("--seconds", type=int, default=60, help="of each target (60)")
    parser.add_argument("--runs", type=int, default=-1, help="inputs of each target at most")
    parser.add_argument("--build", choices=[*BUILDS, "both"], default="both", help="both halve the time")
    parser.add_argument("--folder", type=Path, default=ROOT / "target" / "fuzz", help="for builds, inputs and findings")
    parser.add_argument("--results", action="store_true", help="write bench/results/fuzzing.csv: all in the folder")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}")
    builds = list(BUILDS) if arguments.build == "both" else [arguments.build]
    bad = False
    print(f"{'target':14}{'build':9}{'inputs':>13}{'CPU s':>8}{'per s':>9}{'edges':>16}{'corpus':>8}", flush=True)
    for target in arguments.targets or TARGETS:
        for build in builds:
            found = fuzz(target, build, arguments.folder, arguments.seconds // len(builds), arguments.runs)
            edges = f"{found['covered']} of {found['edges']}"
            rate = found["inputs"] / max(found["seconds"], 0.1)
            print(
                f"{target:14}{build:9}{found['inputs']:13,}{found['seconds']:8.0f}{rate:9,.0f}{edges:>16}{found['corpus']:8}"
                + (f"  FOUND: {found['finding']}" if found["finding"] else ""),
                flush=True,
            )
            bad |= bool(found["finding"])
            add(arguments.folder / "runs.json", target, build, found)
    if arguments.results:
        write_results(json.loads((arguments.folder / "runs.json").read_text()))
    sys.exit(1 if bad else 0)


def fuzz(target: str, build: str, folder: Path, seconds: int, runs: int) -> dict[str, object]:
    """Run one target, and say what came of it."""
    program = built(target, build, folder)
    corpus, findings = folder / "corpus" / target, folder / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    options = {
        "max_len": TARGETS[target],
        "max_total_time": seconds,
        "runs": runs,
        # Both cost more than they bring with inputs as small as these.
        "entropic": 0,
        "reduce_inputs": 0,
        "timeout": MOST_SECONDS,
        "rss_limit_mb": MOST_MEGABYTES,
        "print_final_stats": 1,
        "artifact_prefix": f"{findings}/{target}-",
    }
    environment = os.environ | {"GOLDEN": str(ROOT / "tests" / "golden")}
    # Leaks are looked for at the end of everything, and memory that threads keep is none.
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    # Memory that was freed is not given back each time.
    environment |= {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_TOP_PAD_": "67108864"}
    subprocess.run([program], env=environment | {"FUZZ_SEEDS": str(corpus)}, check=True)
    before = os.times()
    command = [program, *(f"-{name}={value}" for name, value in options.items()), corpus]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    after = os.times()
    (folder / f"{target}-{build}.log").write_text(done.stderr)

    def number(pattern: str) -> int:
        matches = re.findall(pattern, done.stderr, re.MULTILINE)
        return int(matches[-1]) if matches else 0

    finding = re.search(r"Test unit written to (.*)", done.stderr)
    return {
        "inputs": number(r"^stat::number_of_executed_units: +(\d+)"),
        "seconds": after.children_user + after.children_system - before.children_user - before.children_system,
        "edges": number(r"INFO: Loaded \d+ modules +\((\d+) inline"),
        "covered": number(r" cov: (\d+)"),
        "corpus": number(r" corp: (\d+)"),
        "finding": finding[1] if finding else f"exit status {done.returncode}" if done.returncode else "",
    }


def built(target: str, build: str, folder: Path) -> Path:
    """The target's program, made if its sources changed."""
    sources = sorted([*(ROOT / "src").rglob("*.rs"), *(HERE / "targets").glob("*.rs"), Path(__file__)])
    rustc = os.environ.get("RUSTC", "rustc")
    version = subprocess.run([rustc, "-vV"], stdout=subprocess.PIPE, check=True).stdout
    digest = hashlib.sha256(version + b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    place = folder / build / digest
    place.mkdir(parents=True, exist_ok=True)
    flags = ["--edition=2024", "-Copt-level=3", "-Ccodegen-units=1", "-Cdebuginfo=line-tables-only", "--cfg=fuzzing"]
    flags += ["-Cpasses=sancov-module", *(f"-Cllvm-args=-sanitizer-coverage-{what}" for what in COVERAGE)]
    flags += BUILDS[build]
    # Passes and sanitizers are of nightly compilers, or of others that are told to be one.
    environment = os.environ | {"RUSTC_BOOTSTRAP": "1"}
    core, program = place / "libdeepcabac_core.rlib", place / target
    if not core.exists():
        library = ["--crate-type=rlib", "--crate-name=deepcabac_core", "-o", place / "new.rlib", ROOT / "src/lib.rs"]
        subprocess.run([rustc, *flags, *library], env=environment, check=True)
        (place / "new.rlib").rename(core)
    if not program.exists():
        linked = [f"-Clink-arg={fuzzer()}", "-Clink-arg=-lstdc++", f"--extern=deepcabac_core={core}"]
        main = HERE / "targets" / f"{target}.rs"
        output = ["--crate-type=bin", "-o", f"{program}.new", main]
        subprocess.run([rustc, *flags, "-Adead_code", *linked, *output], env=environment, check=True)
        Path(f"{program}.new").rename(program)
    return program


def fuzzer() -> Path:
    """The library that has libFuzzer's main function."""
    machine = os.uname().machine
    known = [Path(os.environ["LIBFUZZER"])] if "LIBFUZZER" in os.environ else []
    for folder in ("/usr/lib/llvm-*/lib/clang", "/usr/lib/clang", "/usr/local/lib/clang"):
        names = [f"{folder}/*/lib/linux/libclang_rt.fuzzer-{machine}.a", f"{folder}/*/lib/*/libclang_rt.fuzzer.a"]
        for name in names:
            known += sorted(Path("/").glob(name[1:]))
    if not known:
        sys.exit("error: there is no libclang_rt.fuzzer: install Debian's libclang-rt-19-dev, or name it in LIBFUZZER")
    return known[-1]


def add(results: Path, target: str, build: str, found: dict[str, object]) -> None:
    """Add a run to those that the file has."""
    known = json.loads(results.read_text()) if results.exists() else {}
    entry = known.setdefault(target, {}).setdefault(build, {"inputs": 0, "seconds": 0.0, "findings": 0})
    entry["inputs"] += found["inputs"]
    entry["seconds"] = round(entry["seconds"] + float(str(found["seconds"])), 1)
    entry["findings"] += bool(found["finding"])
    entry |= {name: found[name] for name in ("edges", "covered", "corpus")}
    results.write_text(json.dumps(known, indent=1) + "\n")


def write_results(known: dict[str, dict[str, dict[str, float]]]) -> None:
    """Write all that was run as a table for README.md."""
    sys.path.insert(0, str(ROOT / "bench"))
    import _common

    rows = []
    for target in TARGETS:
        runs = [known.get(target, {}).get(build, {"inputs": 0, "seconds": 0.0}) for build in BUILDS]
        rates = [f"{run['inputs'] / run['seconds']:.0f}" if run["seconds"] else "" for run in runs]
        last = known.get(target, {}).get("plain", {})
        edges = f"{last['covered']:.0f}" if last else ""
        rows.append([target, *(f"{run['inputs']:.0f}" for run in runs), *rates, edges])
    heads = ["target", "inputs", "with AddressSanitizer", "per second of a core", "with AddressSanitizer, per second"]
    about = _common.environment([]) | {"command": "python fuzz/run.py"}
    _common.save_table(True, "fuzzing", about, [*heads, "edges reached"], rows, keys=0, timed=True)


if __name__ == "__main__":
    main()
