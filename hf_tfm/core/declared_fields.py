"""The fields of a script's dataclasses, read from the source: importing them would import torch."""

import ast
import functools
from importlib.util import find_spec
from pathlib import Path


# transformers imports its classes when they are used, so its `__init__.py` does not show where they are.
_LAZY = {
    "TrainingArguments": "transformers.training_args",
    "Seq2SeqTrainingArguments": "transformers.training_args_seq2seq",
}


def fields_of_script(path: Path) -> set[str] | None:
    """Returns the fields in all calls of `parse_recipe` in a script; None if its source does not show them all."""
    calls = [
        node
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parse_recipe"
    ]
    classes = {ast.unparse(argument) for call in calls for argument in call.args[1:3]} - {"None"}
    try:
        return set().union(*(_fields(path, name) for name in classes)) if calls else None
    except LookupError:
        return None


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _fields(path: Path, name: str) -> set[str]:
    """The annotated names of a class and its bases. Raises `LookupError` if one of them is not found."""
    owner, _, attribute = name.rpartition(".")
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            own = {part.target.id for part in node.body
                   if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)}  # fmt: skip
            return own.union(*(_fields(path, ast.unparse(base)) for base in node.bases))
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == (owner or name):
                    module = _absolute(path, node)
                    if module == "transformers":
                        module = _LAZY.get(alias.name, "")
                    if owner:
                        return _fields(_file(f"{module}.{alias.name}"), attribute)
                    return _fields(_file(module), alias.name)
    raise LookupError(name)


def _absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module that names are imported from; that of a relative import, and a script, as the path of its file."""
    if not node.level:
        script = path.with_name(f"{node.module}.py")
        return str(script.with_suffix("")) if script.is_file() else str(node.module)
    folder = path.parents[node.level - 1]
    return "/".join([str(folder), *(node.module or "").split(".")])


def _file(module: str) -> Path:
    """The file of a module. Raises `LookupError` if there is none."""
    if "/" in module:
        folder, _, name = module.rpartition("/")
        path = Path(folder, *name.split("."))
    else:
        package, *rest = module.split(".")
        spec = find_spec(package) if package else None  # of a package alone, which is not imported for it
        if spec is None or spec.origin is None:
            raise LookupError(module)
        path = Path(spec.origin).parent.joinpath(*rest)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    raise LookupError(module)
