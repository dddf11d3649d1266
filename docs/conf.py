"""The pages of docs/ as a site: ``sphinx-build -W -b dirhtml docs OUT``, with the package and PyTorch installed."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
#: Where links to files lead that are no pages: below the address in pyproject.toml.
_SOURCE = re.search(r'^Source = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
assert _SOURCE
REPOSITORY = f"{_SOURCE[1]}/blob/main/"

project = "deepcabac"
copyright = "the deepcabac authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["requirements.txt"]
nitpicky = False
show_warning_types = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"  # the fields that follow say the same
_ALIASES = "Array npt.ArrayLike Base BaseLike Correct Evaluate Float32 Forward Loss Progress Watch"
autodoc_type_aliases = {name: name for name in _ALIASES.split()}
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88

myst_heading_anchors = 4

html_theme = "furo"
html_title = "deepcabac"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
#: Nothing is loaded from other hosts: furo has its fonts and scripts with it.
html_theme_options = {"navigation_with_keys": False}

#: Documents that lie beside their subject, and the pages (a title and a link, in the repository) that they become.
PAGES = {
    "format": "FORMAT.md",
    "design/architecture": "ARCHITECTURE.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "benchmarks": "bench/README.md",
    "examples": "examples/README.md",
    "guide/javascript": "js/README.md",
}
#: Code, which is left as it is, or the target of a link without its fragment.
_LINK = re.compile(
    r"(?P<code>^(?P<fence>```+).*?^(?P=fence)|`[^`\n]+`)|(?<=\]\()(?P<target>[^)\s#]+)", re.MULTILINE | re.DOTALL
)


def _with_links_of_the_site(name: str, text: str) -> str:
    """Links between files of the repository become links between pages, or into the repository."""
    folder = posixpath.dirname(PAGES.get(name, f"docs/{name}"))
    pages = {path: page for page, path in PAGES.items()}

    def moved(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        here = posixpath.dirname(name) or "."
        if path in pages:
            return posixpath.relpath(pages[path] + ".md", here)
        if path.startswith("docs/") or not (ROOT / path).exists():
            return target if name not in PAGES else posixpath.relpath(path.removeprefix("docs/"), here)
        return REPOSITORY + path

    return _LINK.sub(moved, text)


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    if name in PAGES:
        document = ROOT / PAGES[name]
        app.env.note_dependency(str(document))
        source[0] = document.read_text(encoding="utf-8")
    source[0] = _with_links_of_the_site(name, source[0])


def _short(app: Sphinx, what: str, name: str, it: Any, options: Any, args: str | None, to: str | None) -> Any:
    """Aliases of types by their names."""
    alias = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")
    return tuple(text and alias.sub(r"\1", text).replace("npt.", "") for text in (args, to))


def setup(app: Sphinx) -> None:
    """Take the documents that lie outside docs/ for pages, mend links, and keep signatures short."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-signature", _short)
