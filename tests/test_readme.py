"""Every code block of the README, run as a reader would run it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: (language, line of the README, text)
BLOCKS = [
    (match[1], README[: match.start()].count("\n") + 1, match[2])
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
]


def blocks(language):
    return [pytest.param(text, id=f"line {line}") for found, line, text in BLOCKS if found == language]


@pytest.fixture
def checkout(tmp_path):
    """What a clone holds, without what was built in it, or written by a reader who tried the commands before."""
    built = shutil.ignore_patterns(".git", "target", ".venv", "dist", "__pycache__", ".*_cache", ".hypothesis")
    written = shutil.ignore_patterns("*.dcb", "lenet300-restored.*", "*.search.*")

    def skipped(folder, names):
        return built(folder, names) | (written(folder, names) if folder == os.fspath(ROOT) else set())

    return shutil.copytree(ROOT, tmp_path / "checkout", ignore=skipped, symlinks=True)


PIP = """\
#!/bin/sh
printf '%s\\n' "$*" >> "$PIP_CALLS"
"""
# The block that runs the tests would run this one, and so on.
PYTHON = """\
#!/bin/sh
if [ "$1 $2" = "-m pytest" ]; then
    shift 2
    set -- -m pytest --collect-only -q -p no:cacheprovider "$@"
fi
exec "$REAL_PYTHON" "$@"
"""


def run(text, checkout):
    """Run a shell block with a pip that only notes its arguments. Returns its output and what pip was asked for."""
    tools = checkout.parent / "tools"
    tools.mkdir()
    for name, script in (("pip", PIP), ("python", PYTHON)):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    calls = checkout.parent / "pip-calls"
    calls.touch()
    path = os.pathsep.join([str(tools), sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    environment = os.environ | {"PATH": path, "PIP_CALLS": str(calls), "REAL_PYTHON": sys.executable}
    done = subprocess.run(
        ["sh", "-e", "-c", text],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, calls.read_text().splitlines()


def check_install(call):
    """``pip install`` of this checkout with extras that it has, and of packages that the tests have too."""
    verb, *wanted = call.split()
    assert verb == "install" and wanted
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for requirement in wanted:
        match = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", requirement)
        if match is None:
            importlib.metadata.version(requirement)
        else:
            assert set(match[1].split(",") if match[1] else []) <= set(extras), requirement


def test_the_readme_has_the_blocks_that_are_tested_here():
    assert {language for language, _, _ in BLOCKS} == {"sh", "python", "text"}
    commands = [text for language, _, text in BLOCKS if language == "sh"]
    assert "pip install ." in commands[0] and "-m pytest" in commands[1]


@pytest.mark.skipif(os.name != "posix", reason="the commands are for a POSIX shell")
@pytest.mark.parametrize("text", blocks("sh"))
def test_commands_work_and_leave_nothing_that_git_would_see(text, checkout):
    before = {path.relative_to(checkout) for path in checkout.iterdir()}
    output, calls = run(text, checkout)
    for call in calls:
        check_install(call)
    assert ("pip install" in text) == bool(calls)
    if "-m pytest" in text:
        assert re.search(r"^\d+ tests collected", output, re.MULTILINE), output
    new = {path.relative_to(checkout) for path in checkout.iterdir()} - before
    ignored = [line.lstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.strip()]
    assert all(any(path.match(pattern.rstrip("/")) for pattern in ignored) for path in new), new


@pytest.mark.skipif(os.name != "posix", reason="the commands are for a POSIX shell")
def test_the_first_command_prints_what_the_readme_shows(checkout):
    first = next(text for language, _, text in BLOCKS if language == "sh")
    shown = next(text for language, _, text in BLOCKS if language == "text")
    output, _ = run(first, checkout)
    assert all(line in output.splitlines() for line in shown.splitlines()), output


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs_as_it_is(text, checkout):
    if "torch" in text:
        pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=checkout, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
