"""One file of our own sources that draws without sfumato: `pipeline.py` of an exported folder.

There is no second implementation. From the definition of `TextToImagePipeline` on, every top-level
definition that another one names is copied, module by module, and the imports between our modules
fall away. A plain configuration section becomes a frozen dataclass, and a setting's type loses its
range, so pydantic is not needed.
Methods marked `not_exported` need sfumato, and stay behind.
"""

import ast
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

from sfumato import __version__

PACKAGE = "sfumato"
ROOT = ("sfumato.generation.pipeline", "TextToImagePipeline")
NOT_EXPORTED = "not_exported"
"""The mark of methods that are left out (`sfumato.base.marks`)."""
FILE_NAME = "pipeline.py"
"""Where diffusers looks for the code of a pipeline folder."""

Import = tuple[str, str]
"""Module and imported name (`from module import name`); an empty module for `import name`."""

HEADER = f'''\
"""`TextToImagePipeline` of sfumato {__version__} with all that it needs, for diffusers alone.

Written on export from sfumato's own sources: change those, not this file. It needs torch,
diffusers, transformers, safetensors, numpy and pillow, and draws what sfumato draws:

    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=folder, trust_remote_code=True
    )
    image = pipe("a prompt", guidance_scale=3, seeds=[0]).images[0]

SPDX-License-Identifier: Apache-2.0
"""
'''


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A top-level statement: what it uses by name, and its text with comments and docstring."""

    statement: ast.stmt
    uses: frozenset[str]
    text: str


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module of ours: what its names stand for."""

    definitions: dict[str, Definition]
    imports: dict[str, Import]


def standalone_source() -> str:
    """The text of `pipeline.py`: the same for the same sources.

    `AssertionError` where two modules mean different things by one name, or where the pipeline
    needs a configuration section that has behaviour of its own.
    """
    kept, imports, below = _needed(*ROOT)
    parts = [HEADER + "\n" + _import_lines(imports)]
    for name in TopologicalSorter(below).static_order():
        module = _read(name)
        parts.append(f"# From {name}")
        # A statement may bind several names; the dictionary keeps one entry of each, in order.
        used = {d: None for n, d in module.definitions.items() if (name, n) in kept}
        parts += [_plain(definition) for definition in used]
    return "\n\n\n".join(parts) + "\n"


def _needed(
    module_name: str, name: str
) -> tuple[set[tuple[str, str]], dict[str, Import], dict[str, list[str]]]:
    """What the definition `name` needs, itself included.

    Returns (module, name) of our definitions, the imports of libraries by the name they bind, and
    the modules of ours that each module needs.
    """
    imports: dict[str, Import] = {"dataclass": ("dataclasses", "dataclass")}  # for `_plain`
    below: dict[str, list[str]] = {module_name: []}
    kept: set[tuple[str, str]] = set()
    homes: dict[str, str] = {}
    queue = [(module_name, name)]
    while queue:
        place = module_name, name = queue.pop()
        module = _read(module_name)
        if name in module.definitions and place not in kept:
            kept.add(place)
            assert homes.setdefault(name, module_name) == module_name, f"two meanings of {name}"
            queue += [(module_name, used) for used in sorted(module.definitions[name].uses)]
        elif name in module.imports:
            origin, imported = module.imports[name]
            if origin.partition(".")[0] == PACKAGE:
                assert imported == name, f"{name} has another name in {origin}"
                below[module_name] = sorted({*below[module_name], origin})
                below.setdefault(origin, [])
                queue.append((origin, name))
            else:
                found = (origin, imported)
                assert imports.setdefault(name, found) == found, f"two meanings of {name}"
    assert not homes.keys() & imports.keys(), f"two meanings of {homes.keys() & imports.keys()}"
    return kept, imports, below


@cache
def _read(name: str) -> Module:
    """The top-level definitions and imports of a module, from its source."""
    spec = find_spec(name)
    assert spec, f"no module {name}"
    assert spec.origin, f"{name} has no source"
    source = Path(spec.origin).read_text("utf-8")
    tree = ast.parse(source)
    lines = _without_marked(tree, source.splitlines())
    definitions: dict[str, Definition] = {}
    imports: dict[str, Import] = {}
    for index, statement in enumerate(tree.body):
        if isinstance(statement, ast.If):
            # `if TYPE_CHECKING:` holds imports for annotations; here they are imports as others.
            for inner in statement.body:
                imports.update(_imports(inner))
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            imports.update(_imports(statement))
        elif not isinstance(statement, ast.Expr):
            plain = _without_range(statement)
            definition = Definition(
                statement=statement,
                uses=_uses(statement),
                text=plain or _text(lines, tree.body, index),
            )
            definitions.update(dict.fromkeys(_bound(statement), definition))
    return Module(definitions=definitions, imports=imports)


def _without_range(statement: ast.stmt) -> str | None:
    """`Count = Annotated[int, Field(ge=1)]` becomes `Count = int`, also in the tree, and is the
    text; None for any other statement."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Subscript):
        return None
    annotated = statement.value
    if ast.unparse(annotated.value) != "Annotated" or not isinstance(annotated.slice, ast.Tuple):
        return None
    statement.value = annotated.slice.elts[0]
    return ast.unparse(statement)


def _without_marked(tree: ast.Module, lines: list[str]) -> list[str | None]:
    """Take the marked methods out of the classes of `tree`, and their lines out of `lines`.

    What is taken out is None, with the empty line after it, so that the others keep their numbers.
    """
    kept: list[str | None] = list(lines)
    for statement in tree.body:
        if not isinstance(statement, ast.ClassDef):
            continue
        for method in list(statement.body):
            decorators = getattr(method, "decorator_list", [])
            if any(isinstance(d, ast.Name) and d.id == NOT_EXPORTED for d in decorators):
                statement.body.remove(method)
                first, last = decorators[0].lineno, method.end_lineno
                assert last is not None
                kept[first - 1 : last + 1] = [None] * (last + 2 - first)
    return kept[: len(lines)]


def _imports(statement: ast.stmt) -> dict[str, Import]:
    assert isinstance(statement, ast.Import | ast.ImportFrom), ast.unparse(statement)
    module = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
    return {
        (alias.asname or alias.name).partition(".")[0]: (module, ast.unparse(alias))
        for alias in statement.names
    }


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    return [
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]


def _uses(statement: ast.stmt) -> frozenset[str]:
    """Every name in a statement but `Section`, also in annotations that are written as text.

    A local name may be among them that is a definition elsewhere: then too much is kept.
    """
    nodes = list(ast.walk(statement))
    for node in list(nodes):
        written = getattr(node, "annotation", None) or getattr(node, "returns", None)
        if isinstance(written, ast.Constant) and isinstance(written.value, str):
            nodes += ast.walk(ast.parse(written.value, mode="eval"))
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name)) - {"Section"}


def _text(lines: list[str | None], body: list[ast.stmt], index: int) -> str:
    """A statement's lines, with decorators, the comment above it and the docstring below it."""
    statement = body[index]
    start = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    while start > 1 and (lines[start - 2] or "").startswith("#"):
        start -= 1
    after = body[index + 1] if index + 1 < len(body) else None
    last = after if isinstance(after, ast.Expr) else statement
    return "\n".join(line for line in lines[start - 1 : last.end_lineno] if line is not None)


def _plain(definition: Definition) -> str:
    """The text of a definition; a configuration section becomes a frozen dataclass."""
    statement = definition.statement
    bases = statement.bases if isinstance(statement, ast.ClassDef) else []
    if not any(isinstance(base, ast.Name) and base.id == "Section" for base in bases):
        return definition.text
    assert isinstance(statement, ast.ClassDef)
    assert all(isinstance(part, ast.AnnAssign | ast.Expr) for part in statement.body), (
        f"the section {statement.name} has behaviour of its own, which a dataclass would lose"
    )
    text = definition.text.replace("(Section):", ":", 1)
    return f"@dataclass(frozen=True, kw_only=True)\n{text}"


def _import_lines(imports: dict[str, Import]) -> str:
    """Import statements, sorted; one line for each module."""
    plain = sorted(f"import {name}" for module, name in imports.values() if not module)
    modules = sorted({module for module, _ in imports.values() if module})
    for origin in modules:
        names = sorted(name for module, name in imports.values() if module == origin)
        plain.append(f"from {origin} import {', '.join(names)}")
    return "\n".join(plain)
