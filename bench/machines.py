"""The core on other processors: its tests, the golden files and the bytes of what is coded, under emulation.

    python bench/machines.py               # all that can be run here
    python bench/machines.py powerpc64 --all   # one, with all tests of the core (minutes)

Needs qemu-user and a cross compiler (Debian: qemu-user, gcc-aarch64-linux-gnu, gcc-arm-linux-gnueabihf,
gcc-powerpc64-linux-gnu and the libc6-dev-*-cross that they recommend), and Rust's library for the machine: `rustup
target add`, or what `js/build.sh` keeps of Debian. What is missing is said, and left out. `tests/machines.rs` compares
with what x86-64 gives.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Machine:
    """A kind of processor."""

    what: str
    target: str  #: Rust's name of it
    compiler: str  #: the cross compiler's prefix
    emulator: str
    flags: str = ""  #: of rustc


MACHINES = {
    "aarch64": Machine("64-bit ARM", "aarch64-unknown-linux-gnu", "aarch64-linux-gnu", "qemu-aarch64"),
    "armv7": Machine("32 bits", "armv7-unknown-linux-gnueabihf", "arm-linux-gnueabihf", "qemu-arm"),
    # Not s390x: qemu 7.2, which Debian 12 has, multiplies wrongly there (MDEBR). And with VSX, as AltiVec's vectors
    # take subnormal numbers for zero.
    "powerpc64": Machine(
        "big-endian", "powerpc64-unknown-linux-gnu", "powerpc64-linux-gnu", "qemu-ppc64", "-Ctarget-cpu=pwr8"
    ),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Test the core on other processors, under emulation.")
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help=f"of {', '.join(MACHINES)}; all if none given")
    parser.add_argument("--all", action="store_true", help="with all tests of the core: minutes for each machine")
    parser.add_argument("--strict", action="store_true", help="what cannot be run is a failure")
    arguments = parser.parse_args()
    unknown = set(arguments.machines) - set(MACHINES)
    if unknown:
        parser.error(f"no machine {', '.join(sorted(unknown))}")
    outcomes = []
    for name in arguments.machines or MACHINES:
        missing = what_is_missing(MACHINES[name])
        outcome = f"not run: {missing}" if missing else test(MACHINES[name], arguments.all)
        print(f"{name} ({MACHINES[name].what}): {outcome}", flush=True)
        outcomes.append(outcome)
    failed = any(outcome.startswith("FAILED") for outcome in outcomes)
    left_out = any(outcome.startswith("not run") for outcome in outcomes)
    sys.exit(1 if failed or (arguments.strict and left_out) else 0)


def what_is_missing(machine: Machine) -> str:
    """What has to be installed, or nothing."""
    for program, package in ((machine.emulator, "qemu-user"), (f"{machine.compiler}-gcc", f"gcc-{machine.compiler}")):
        if shutil.which(program) is None:
            return f"there is no {program} here (Debian: {package})"
    if not has_library(machine) and debian() is None:
        return f"this Rust has no library for it: rustup target add {machine.target}; or js/build.sh, for Debian's"
    return ""


def has_library(machine: Machine) -> bool:
    """Whether the installed Rust can build for it."""
    command = ["rustc", "--print", "target-libdir", "--target", machine.target]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return found.returncode == 0 and Path(found.stdout.strip()).is_dir()


def debian() -> Path | None:
    """Debian's compiler with its library's source, where js/build.sh keeps it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deepcabac-wasm"
    kept = sorted(Path(os.environ.get("DEEPCABAC_WASM_CACHE", cache)).glob("*/complete"))
    return kept[-1].parent if kept else None


def test(machine: Machine, everything: bool) -> str:
    """Build the tests and run them."""
    environment = dict(os.environ)
    options, tools = [], debian()
    if not has_library(machine) and tools is not None:
        libraries = tools / "usr" / "lib" / f"{platform.machine()}-linux-gnu"
        environment |= {"LD_LIBRARY_PATH": str(libraries), "RUSTC": str(tools / "usr" / "bin" / "rustc")}
        environment |= {"RUSTC_BOOTSTRAP": "1", "CARGO_HOME": str(tools / "home")}
        options = ["-Zbuild-std=std,panic_unwind,test"]
    prefix = "CARGO_TARGET_" + machine.target.upper().replace("-", "_")
    environment[f"{prefix}_RUSTFLAGS"] = machine.flags
    environment[f"{prefix}_LINKER"] = f"{machine.compiler}-gcc"
    # The emulator has libraries of its own, and the machine's are the cross compiler's.
    environment[f"{prefix}_RUNNER"] = f"env -u LD_LIBRARY_PATH {machine.emulator} -L /usr/{machine.compiler}"
    environment["CARGO_TARGET_DIR"] = str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "machines")
    command = ["cargo", "test", "--offline", "--locked", "--release", "--target", machine.target, *options]
    command += ["--lib", "--test", "machines"] if everything else ["--test", "machines"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, **both)
    passed = sum(map(int, re.findall(r"^test result: .* (\d+) passed", done.stdout, re.MULTILINE)))
    if done.returncode == 0 and passed:
        return f"{passed} tests passed"
    return "FAILED\n" + "\n".join(done.stdout.splitlines()[-40:])


if __name__ == "__main__":
    main()
