"""The arrows between packages and modules, read from the sources: who may import whom (docs/design.md has the map)."""

import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

import rmsnorm.numpy
from rmsnorm import info, timing

SRC = Path(info.__file__).parents[1]
if not (SRC / "rmsnorm_lab").is_dir():
    pytest.skip("the sources do not lie side by side", allow_module_level=True)

FILES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("rmsnorm", "rmsnorm_lab")
    for path in sorted((SRC / package).rglob("*.py"))
}


@functools.cache
def parsed(module):
    """Read when a test asks for it: every worker collects this file, and all sources take it 1.5 s."""
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


# A module may import those of its own floor and of the floors before it.
FLOORS = (
    "rmsnorm.reference",
    "rmsnorm.spec",
    "rmsnorm.timing",
    "rmsnorm.native",
    "rmsnorm.arrays",
    "rmsnorm.numpy",
    "rmsnorm.jax",
    "rmsnorm.torch",
    "rmsnorm.info",
    "rmsnorm.build_nodes",
    "rmsnorm.cli",
)
LAB_FLOORS = ("rmsnorm_lab.bench", "rmsnorm_lab.experiments", "rmsnorm_lab.analysis", "rmsnorm_lab.report")
"""The lab's folders, in order; the modules beside them are the floor below. bench and experiments share no module."""


def for_types(tree):
    """The imports under ``if TYPE_CHECKING``: none of them runs."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    return {id(inner) for block in blocks for inner in ast.walk(block)}


def imports(module, at_import=False):
    """(module, name or None) for all that ``module`` imports of the two packages, within functions too unless
    ``at_import``."""
    tree = parsed(module)
    skipped = for_types(tree)
    if at_import:
        functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
        skipped |= {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for source, name in found:
            if source.partition(".")[0] in ("rmsnorm", "rmsnorm_lab"):
                yield (f"{source}.{name}", None) if f"{source}.{name}" in FILES else (source, name)


def floor(module, floors):
    return next((i for i, each in enumerate(floors) if f"{module}.".startswith(f"{each}.")), -1)


LIBRARY = [module for module in FILES if module.partition(".")[0] == "rmsnorm"]
LAB = [module for module in FILES if module.partition(".")[0] == "rmsnorm_lab"]


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_does_not_import_the_lab(module):
    assert not [source for source, _ in imports(module) if source.startswith("rmsnorm_lab")]
    if module != "rmsnorm.cli":  # it loads a lab command by its name, when it is called
        strings = [node.value for node in ast.walk(parsed(module)) if isinstance(node, ast.Constant)]
        assert not [text for text in strings if isinstance(text, str) and text.startswith("rmsnorm_lab")]


@pytest.mark.parametrize("module", [module for module in LIBRARY if module != "rmsnorm"])
def test_no_module_of_the_library_imports_a_higher_floor(module):
    own = floor(module, FLOORS)
    assert own >= 0, f"{module} is on no floor: add it to FLOORS"
    for source, _ in imports(module):
        assert source == "rmsnorm" or floor(source, FLOORS) <= own, f"{module} imports {source}"


FAMILIES = sorted(module.split(".")[2] for module in LIBRARY if re.fullmatch(r"rmsnorm\.torch\.\w+\.composite", module))
SHARED = ("bindings", "checks", "dispatch", "indirect", "onnx", "operation", "registration", "norm")
"""What a family of operations may import of rmsnorm.torch besides itself."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_operations_imports_no_other(family):
    allowed = {family, *SHARED} | ({"functional"} if family == "rnn" else set())  # its expression calls plain norms
    for module in LIBRARY:
        if f"{module}.".startswith(f"rmsnorm.torch.{family}."):
            for source, name in imports(module):
                if f"{source}.".startswith("rmsnorm.torch."):
                    found = f"{source}.{name}".removeprefix("rmsnorm.torch.").split(".")[0]
                    assert found in allowed, f"{module} imports {source}"


def test_the_oracle_imports_nothing_of_the_library():
    for module in LIBRARY:
        if module.startswith("rmsnorm.reference"):
            assert all(source.startswith("rmsnorm.reference") for source, _ in imports(module)), module


def public_of(package):
    """A package's ``__all__``, read without importing its framework."""
    (names,) = (
        node.value for node in parsed(package).body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    return ast.literal_eval(names)


PUBLIC = {
    "rmsnorm.torch": public_of("rmsnorm.torch"),
    "rmsnorm.numpy": rmsnorm.numpy.__all__,
    "rmsnorm.jax": public_of("rmsnorm.jax"),
    "rmsnorm.spec": ["partial_count"],  # k = ⌈n·p⌉: what pRMSNorm is, for an implementation in another framework
    "rmsnorm.timing": [name for name in vars(timing) if not name.startswith("_")],
    "rmsnorm.info": [name for name in vars(info) if not name.startswith("_")],
}


@pytest.mark.parametrize("module", LAB)
def test_the_lab_uses_public_names_of_the_library(module):
    for source, name in imports(module):
        if source.startswith("rmsnorm_lab") or f"{source}.".startswith("rmsnorm.reference.") or source == "rmsnorm":
            continue
        assert source in PUBLIC, f"{module} imports {source}"
        assert name is None or name in PUBLIC[source], f"{module} imports {name} of {source}"
    for alias, source in aliases(parsed(module)):
        used = {
            node.attr
            for node in ast.walk(parsed(module))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == alias
        }
        assert used <= set(PUBLIC[source]), f"{module} uses {used - set(PUBLIC[source])} of {source}"


def aliases(tree):
    """(alias, module) of each ``import rmsnorm.torch as alias``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.asname, each.name) for each in node.names if each.asname and each.name in PUBLIC)


@pytest.mark.parametrize("module", [module for module in LAB if module != "rmsnorm_lab"])
def test_no_module_of_the_lab_imports_a_higher_floor(module):
    own = floor(module, LAB_FLOORS)
    for source, _ in imports(module):
        if source.startswith("rmsnorm_lab."):
            other = floor(source, LAB_FLOORS)
            assert other <= own, f"{module} imports {source}"
            assert {other, own} != {0, 1}, f"bench and experiments share no module; {module} imports {source}"


@pytest.mark.parametrize(("modules", "at_import"), [(LIBRARY, True), (LAB, False)], ids=["library", "lab"])
def test_no_circles(modules, at_import):
    graph = {module: {source for source, _ in imports(module, at_import)} - {module} for module in modules}
    packages = {module for module in modules if FILES[module].name == "__init__.py"}
    for module, sources in graph.items():  # `from rmsnorm.torch import x` within rmsnorm.torch is of the module x
        graph[module] = {s for s in sources if s in modules and not (s in packages and module.startswith(f"{s}."))}
    assert list(graphlib.TopologicalSorter(graph).static_order())
