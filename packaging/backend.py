"""The build backend: maturin, with three things added that it does not do itself.

- Without cargo, or with one that is too old, the build stops at once and says what to do. maturin would download one.
- Wheels for Linux get the lowest manylinux or musllinux tag that fits them. maturin tags what pip builds ``linux``.
- Relative links of the README, which would lead nowhere on a package index, become absolute in the long description.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import maturin

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which maturin brings

ROOT = Path(__file__).resolve().parent.parent
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

NO_CARGO = """
error: building deepcabac from source needs Rust's cargo {needed} or later. {found}
  Either install Rust from https://rustup.rs, or from the system's packages if they have {needed}, and try again;
  or install a wheel, which needs no Rust: "pip install --only-binary deepcabac deepcabac",
  or one that "pip wheel . --no-deps" made on a machine with Rust and the same system.
"""

Settings = Mapping[str, Any] | None


def require_cargo() -> None:
    """End the build with an explanation if cargo is missing or older than ``rust-version`` of Cargo.toml."""
    needed = CARGO["rust-version"]
    cargo = shutil.which("cargo")
    if cargo is None:
        found = "There is no cargo on PATH."
    else:
        run = subprocess.run([cargo, "--version"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
        version = re.match(r"cargo (\d+)\.(\d+)", run.stdout)
        if version and (int(version[1]), int(version[2])) >= tuple(map(int, needed.split(".")[:2])):
            return
        found = f'"{cargo} --version" says: {(run.stdout + run.stderr).strip() or "nothing"}'
    # Front ends show the text of an exit, but a traceback before that of any other exception.
    raise SystemExit(NO_CARGO.format(needed=needed, found=found))


def absolute(markdown: str) -> str:
    """Markdown whose relative links lead into the repository, at the tag of this version. Code stays as it is."""
    source, tag = PROJECT["urls"]["Source"], f"v{CARGO['version']}"

    def link(match: re.Match[str]) -> str:
        before, target = match[1], match[2]
        if re.match(r"[a-z][a-z+.-]*:", target):
            return match[0]
        if target.startswith("#"):
            target = f"README.md{target}"
        # "raw" gives the file itself, which an image needs, "blob" the page about it.
        kind = "raw" if target.endswith((".png", ".svg", ".gif", ".jpg")) else "blob"
        return f"{before}{source}/{kind}/{tag}/{target.removeprefix('./')}"

    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(\]\()([^)\s]+)", link, parts[i])
        parts[i] = re.sub(r"(^\[[^\]]+\]: *)(\S+)", link, parts[i], flags=re.MULTILINE)
        parts[i] = re.sub(r"(\b(?:src|srcset|href)=\")([^\"\s]+)", link, parts[i])
    return "".join(parts)


def _described(metadata: bytes) -> bytes:
    """Core metadata whose long description has absolute links."""
    head, blank, description = metadata.decode("utf-8").partition("\n\n")
    return (head + blank + absolute(description)).encode("utf-8")


def _describe_wheel(path: Path) -> None:
    with zipfile.ZipFile(path) as wheel:
        files = {info.filename: (info, wheel.read(info)) for info in wheel.infolist()}
    name, record = (next(n for n in files if n.endswith(f".dist-info/{end}")) for end in ("METADATA", "RECORD"))
    metadata = _described(files[name][1])
    digest = base64.urlsafe_b64encode(hashlib.sha256(metadata).digest()).rstrip(b"=").decode()
    lines = files[record][1].decode("utf-8").splitlines()
    lines = [f"{name},sha256={digest},{len(metadata)}" if line.startswith(f"{name},") else line for line in lines]
    new = {name: metadata, record: "\n".join([*lines, ""]).encode("utf-8")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for key, (info, data) in files.items():
            wheel.writestr(info, new.get(key, data))


def _describe_sdist(path: Path) -> None:
    with tarfile.open(path) as old:
        files = [(member, old.extractfile(member).read()) for member in old if member.isfile()]  # type: ignore[union-attr]
    with tarfile.open(path, "w:gz") as new:
        for member, data in files:
            if re.fullmatch(r"[^/]+/PKG-INFO", member.name):
                data = _described(data)
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def _fitting(settings: Settings) -> dict[str, Any]:
    """Settings that ask for the lowest tag that fits, unless they name one: maturin's default for pip is ``linux``."""
    arguments = list(maturin.get_maturin_pep517_args(settings))
    if not any(argument.startswith(("--compatibility", "--manylinux")) for argument in arguments):
        arguments.append("--compatibility")  # without a value: what fits
    return {**(settings or {}), "maturin.build-args": arguments}


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """PEP 517."""
    require_cargo()
    return maturin.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """PEP 517."""
    require_cargo()
    return maturin.get_requires_for_build_sdist(config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    """PEP 517."""
    require_cargo()
    name = maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings)
    path = Path(metadata_directory, name, "METADATA")
    path.write_bytes(_described(path.read_bytes()))
    return name


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """PEP 517."""
    require_cargo()
    name = maturin.build_wheel(wheel_directory, _fitting(config_settings), metadata_directory)
    _describe_wheel(Path(wheel_directory, name))
    return name


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """PEP 517."""
    require_cargo()
    name = maturin.build_sdist(sdist_directory, config_settings)
    _describe_sdist(Path(sdist_directory, name))
    return name


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """PEP 660."""
    require_cargo()
    name = maturin.build_editable(wheel_directory, _fitting(config_settings), metadata_directory)
    _describe_wheel(Path(wheel_directory, name))
    return name


get_requires_for_build_editable = get_requires_for_build_wheel
prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel
