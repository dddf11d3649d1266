"""Running the command line, in this process and as a process of its own."""

from __future__ import annotations

import subprocess
import sys

from click.testing import CliRunner

from deepcabac.cli import program

COMMAND = [sys.executable, "-c", "from deepcabac.cli import main; main()"]


def run(*args):
    return CliRunner().invoke(program, [str(arg) for arg in args], prog_name="deepcabac")


def process(*args, **options):
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, timeout=60, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
