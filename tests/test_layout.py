"""The layout of the package and the core: no import circles, and no function that hides a module."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import deepcabac

ROOT = Path(deepcabac.__file__).parent


def modules():
    """Paths of the package's modules by dotted name, a package under its own."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        if "_native" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name, path, known):
    """Modules of the package that a module imports anywhere in it, also inside functions and for types alone."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # "from package import module" is the module's import; "from package import name" the package's.
            found |= {whole if (whole := f"{source}.{alias.name}") in known else source for alias in node.names}
    return {one for one in found if one in known}


def cycle(graph):
    """The modules of a circle in order, or an empty list."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for following in sorted(graph[node]):
            if found := visit(following):
                return found
        done.add(path.pop())
        return []

    for node in sorted(graph):
        if found := visit(node):
            return found
    return []


def test_no_two_modules_import_each_other():
    known = modules()
    graph = {name: imports(name, path, known) for name, path in known.items()}
    assert len(graph) > 50 and graph["deepcabac.dcb.reader"] >= {"deepcabac.dcb.container", "deepcabac._core"}
    assert cycle(graph) == []


def test_a_circle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("name", sorted({name.rpartition(".")[0] for name in modules()} - {""}))
def test_no_name_hides_a_module(name):
    if name == "deepcabac.torch":
        pytest.importorskip("torch")
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ("torch", "_native", "transformers", "onnxruntime", "diffusers"):
            importlib.import_module(f"{name}.{module.name}")
        there = getattr(package, module.name, None)
        assert there is None or isinstance(there, ModuleType), f"{name}.{module.name} is {there!r}"


def test_no_two_modules_give_one_name_to_two_things():
    """Classes and type aliases that other modules can see; constants and type variables are each module's own."""
    where = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign) and not (
                isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "TypeVar"
            ):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if name[0].isupper() and not name.isupper():
                    where.setdefault(name, []).append(module)
    assert where["Source"] == ["deepcabac.source"]
    assert {name: found for name, found in where.items() if len(found) > 1} == {}


CORE = Path(__file__).parents[1] / "src"


def core_modules():
    """Paths of the core's modules by the name that ``use crate::`` has for them."""
    names = {path: list(path.relative_to(CORE).with_suffix("").parts) for path in sorted(CORE.rglob("*.rs"))}
    return {"::".join(parts[:-1] if parts[-1] == "mod" else parts): path for path, parts in names.items()}


def core_uses(name, text, known):
    """Modules that a module of the core names, its tests and comments aside."""
    text = re.sub(r"(?m)//.*", "", text.split("#[cfg(test)]\nmod tests")[0])
    text = re.sub(r"\bsuper::", f"crate::{name.rpartition('::')[0]}::", text)
    paths = [path.strip(":").split("::") for path in re.findall(r"\bcrate::([a-z0-9_:]+)", text)]
    # Of a path such as a::b::function the longest part that is a module.
    prefixes = [["::".join(path[:count]) for count in range(len(path), 0, -1)] for path in paths]
    return {next((one for one in names if one in known), name) for names in prefixes} - {name}


def test_no_two_modules_of_the_core_use_each_other():
    paths = core_modules()
    graph = {name: core_uses(name, path.read_text(encoding="utf-8"), set(paths)) for name, path in paths.items()}
    assert graph["cpu::dispatch"] >= {"chunk", "coding::lanes", "cpu::avx2"} and "model::scale" in graph["model::rows"]
    assert cycle(graph) == []
    doors = {name for name in graph if "cpu::avx2" in graph[name]}
    assert doors - {"cpu::differential"} == {"cpu::dispatch"}, "the first is for tests and fuzzing alone"


def test_a_use_is_found():
    text = "use super::c::X; // crate::d\n#[cfg(test)]\nmod tests { use crate::e; }"
    assert core_uses("a::b", text, {"a::c", "d", "e"}) == {"a::c"}
