"""``python packaging/check_release.py TAG REPOSITORY DIST``: is what is about to be published complete and consistent?

Checks that TAG is ``v`` and the version of Cargo.toml, that the addresses in pyproject.toml lead to REPOSITORY, that
CHANGELOG.md has dated this version, and that DIST holds the sdist and one wheel for each platform. Needs Python 3.11.
"""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
WHEELS = [
    "manylinux*_x86_64",
    "manylinux*_aarch64",
    "musllinux*_x86_64",
    "musllinux*_aarch64",
    "macosx*_arm64",
    "macosx*_x86_64",
    "win_amd64",
]


def faults(tag: str, repository: str, dist: Path) -> list[str]:
    """What is wrong, a sentence each."""
    version = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]["version"]
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, but Cargo.toml says version {version}")
    if urls["Source"] != repository:
        found.append(f"Source in pyproject.toml is {urls['Source']}, but this repository is {repository}")
    found += [
        f"{name} in pyproject.toml leads elsewhere: {urls[name]}"
        for name in ("Changelog", "Issues")
        if not urls[name].startswith(f"{repository}/")
    ]
    if not re.search(rf"^## {re.escape(version)}, \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        found.append(f'CHANGELOG.md has no line "## {version}, YYYY-MM-DD"')
    names = {path.name for path in dist.iterdir()}
    for pattern in [f"deepcabac-{version}.tar.gz", *(f"deepcabac-{version}-py3-none-{wheel}.whl" for wheel in WHEELS)]:
        fitting = {name for name in names if fnmatch(name, pattern)}
        if len(fitting) != 1:
            found.append(f"{dist} holds {len(fitting)} files {pattern}, not one")
        names -= fitting
    return found + [f"{dist} also holds {name}" for name in sorted(names)]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    problems = faults(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(bool(problems))
