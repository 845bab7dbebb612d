"""Keeps the floor plan true: who imports whom, file sizes, annotations, no print in the library.

Every rule is a function from source text to a list of complaints, tried on made-up sources that break it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, STAGES = "irn_pipeline", "stages"
MAX_LINES = 300
BASE = {"", "__version__", "errors", "files", "structures", "variants"}
"""What everything may import; "" and `__version__` are the bare package."""
ROOMS = {"ops", "seeds", "refiners", "nn", "models", "datasets", "metrics", "export", "engine"}
RECORDS = {"cam_files", "walked_scores", "artifacts", "older_runs"}
"""Modules that say what a run folder holds."""
ASSEMBLY = {
    *("cam_source", "cached_features", "trained_networks", "weight_files"),
    *("evaluation", "gallery", "predictor"),
    *("configs", "cam_training", "activation_maps"),
    *("facts", "plan", "plan_training", "forecast", "notices", "held_out"),
}
"""Modules that put the rooms together, for the stages."""
EVERYTHING_BELOW_STAGES = BASE | ROOMS | RECORDS | ASSEMBLY
ALLOWED = {
    "": {"structures", "predictor", "running"},
    "errors": set(),
    "structures": {"errors"},
    "variants": set(),
    "files": {"", "__version__", "errors", "files"},
    "models": BASE | {"engine", "nn", "models"},
    "ops": BASE | {"ops"},
    "seeds": BASE | {"ops", "seeds"},
    "refiners": BASE | {"ops", "refiners"},
    "nn": BASE | {"ops", "nn"},
    "datasets": BASE | {"ops", "engine", "datasets"},
    "metrics": BASE | {"ops", "metrics"},
    "export": BASE | {"ops", "engine", "export"},
    "engine": {"", "__version__", "errors", "files", "engine"},
    "cam_files": BASE | {"ops", "engine", "cam_files"},
    "walked_scores": BASE | {"walked_scores"},
    "artifacts": BASE | {"engine", "cam_files", "walked_scores", "artifacts"},
    "older_runs": BASE | {"ops", "engine", "older_runs"},
    **dict.fromkeys(ASSEMBLY, EVERYTHING_BELOW_STAGES),
    "stages": EVERYTHING_BELOW_STAGES | {"stages"},
    "pipeline": EVERYTHING_BELOW_STAGES,
    "running": EVERYTHING_BELOW_STAGES | {"stages"},
}
"""Room of the library -> rooms that it may import."""
SEES_ALL_STAGES = "irn_pipeline.stages.catalogue"
SHARED_BY_STAGES = {"irn_pipeline.stages", "irn_pipeline.stages.NAMES"}


def room_of(module: str) -> str:
    """`nn` for `irn_pipeline.nn.backbone`, "" for `irn_pipeline` itself."""
    return [*module.split("."), ""][1]


def imported_modules(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Dotted names that `source` imports anywhere in it, relative ones resolved, imported names appended."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def forbidden_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of a library module that point up or sideways."""
    complaints = []
    room = room_of(module)
    if room not in ALLOWED:
        return [f"{module}: the room '{room}' is not on the floor plan"]
    for name in imported_modules(source, module, is_package):
        top = name.split(".")[0]
        above = top in (STAGES, "tests", "configs")
        if above or (top == LIBRARY and room_of(name) not in ALLOWED[room]):
            complaints.append(f"{module} imports {name}")
        elif room in ("files", "engine") and top in (
            "cv2",
            "imageio",
            "torchvision",
            "pydensecrf",
            "pycocotools",
        ):
            complaints.append(f"{module} knows vision: it imports {name}")
    return complaints


def imports_between_stages(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of one stage by another, or of the catalogue by a stage; only the catalogue sees all stages."""
    if module == SEES_ALL_STAGES:
        return []
    return [
        f"{module} imports {name}"
        for name in imported_modules(source, module, is_package)
        if name.startswith("irn_pipeline.stages") and name not in SHARED_BY_STAGES
    ]


def more_than_a_command(source: str, module: str, is_package: bool = False) -> list[str]:
    """Definitions in the thin modules of the top-level `stages`, and imports of other stages than their own."""
    own = {"irn_pipeline.stages.command", "irn_pipeline.stages.catalogue", f"irn_pipeline.{module}"}
    tree = ast.parse(source)
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    complaints = [f"{module} defines {node.name}" for node in defined]
    for name in imported_modules(source, module, is_package):
        if name.rpartition(".")[0] not in own:
            complaints.append(f"{module} imports {name}")
    return complaints


def prints(source: str, module: str, is_package: bool = False) -> list[str]:
    """Calls of `print`."""
    return [
        f"{module}:{node.lineno} prints"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def too_long(source: str, module: str, is_package: bool = False) -> list[str]:
    """Whether the module outgrew the limit."""
    count = len(source.splitlines())
    return [f"{module} has {count} lines, over {MAX_LINES}"] if count > MAX_LINES else []


def public_functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Public functions of a module and of its public classes; the flag tells methods bound to an instance."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node, False
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                if not method.name.startswith("_") or method.name == "__init__":
                    decorators = {d.id for d in method.decorator_list if isinstance(d, ast.Name)}
                    yield method, "staticmethod" not in decorators


def unannotated(source: str, module: str, is_package: bool = False) -> list[str]:
    """Arguments and results of public functions without an annotation."""
    complaints = []
    for function, bound in public_functions(ast.parse(source)):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args][bound:] + arguments.kwonlyargs
        named += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
        complaints += [f"{module}.{function.name}: {a.arg}" for a in named if a.annotation is None]
        if function.returns is None:
            complaints.append(f"{module}.{function.name}: result")
    return complaints


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file of every module of a package in this checkout."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


LIBRARY_MODULES, COMMANDS = modules(LIBRARY), modules(STAGES)
STAGE_MODULES = {
    name: path for name, path in LIBRARY_MODULES.items() if name.startswith("irn_pipeline.stages")
}


def complaints_of(rule: Callable[[str, str, bool], list[str]], files: dict[str, Path]) -> list[str]:
    """What a rule says of all files."""
    found = []
    for module, path in files.items():
        found += rule(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    return found


def test_there_is_something_to_check():
    assert {"irn_pipeline", "irn_pipeline.structures", "irn_pipeline.nn.backbone"} <= set(LIBRARY_MODULES)
    assert {"irn_pipeline.stages.make_cam", SEES_ALL_STAGES} <= set(STAGE_MODULES)
    assert {"stages.make_cam", "stages.__main__"} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (forbidden_imports, LIBRARY_MODULES),
        (imports_between_stages, STAGE_MODULES),
        (more_than_a_command, COMMANDS),
        (prints, LIBRARY_MODULES),
        (too_long, LIBRARY_MODULES | COMMANDS),
        (unannotated, LIBRARY_MODULES | COMMANDS),
    ],
    ids=["layers", "stages apart", "thin commands", "no print", "length", "annotations"],
)
def test_project_keeps(rule, files):
    assert complaints_of(rule, files) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("irn_pipeline.structures", "from irn_pipeline.ops import masks"),
        ("irn_pipeline.ops.crf", "from irn_pipeline.nn.backbone import Backbone"),
        ("irn_pipeline.ops.crf", "from irn_pipeline.engine import store"),
        ("irn_pipeline.nn.irn_losses", "import irn_pipeline.datasets.voc"),
        ("irn_pipeline.nn.irn_losses", "from irn_pipeline import datasets"),
        ("irn_pipeline.nn.irn_losses", "from ..metrics import semantic"),
        ("irn_pipeline.nn.irn_losses", "def f() -> None:\n    from irn_pipeline.export import report"),
        ("irn_pipeline.metrics.semantic", "import stages.evaluate"),
        ("irn_pipeline.engine.cli", "from irn_pipeline.structures import Cam"),
        ("irn_pipeline.engine.cli", "import cv2"),
        ("irn_pipeline.artifacts", "from irn_pipeline.datasets import voc"),
        ("irn_pipeline.attic.old", ""),
    ],
)
def test_import_up_or_sideways_is_seen(module, source):
    assert len(forbidden_imports(source, module)) == 1


def test_relative_import_in_a_package_starts_at_the_package():
    assert forbidden_imports("from .backbone import Backbone", "irn_pipeline.nn", is_package=True) == []
    assert forbidden_imports("from ..datasets import voc", "irn_pipeline.nn", is_package=True) != []


def test_import_down_is_allowed():
    source = "import numpy\nfrom irn_pipeline import __version__\nfrom irn_pipeline.ops.masks import mask_iou"
    assert forbidden_imports(source, "irn_pipeline.nn.irn_losses") == []
    assert forbidden_imports("import torch, joblib", "irn_pipeline.engine.parallel") == []
    assert forbidden_imports("from irn_pipeline.engine import store", "irn_pipeline.artifacts") == []


@pytest.mark.parametrize(
    "source",
    [
        "from irn_pipeline.stages.make_cam import Params",
        "import irn_pipeline.stages.make_cam",
        "from irn_pipeline.stages import make_cam",
        "from . import make_cam",
        "def f():\n    from irn_pipeline.stages.catalogue import PIPELINE",
        'if __name__ == "__main__":\n    from irn_pipeline.stages.catalogue import stage_main',
    ],
)
def test_import_between_stages_is_seen(source):
    assert len(imports_between_stages(source, "irn_pipeline.stages.train_irn")) == 1
    assert imports_between_stages(source, SEES_ALL_STAGES) == []


def test_code_in_a_command_is_seen():
    assert more_than_a_command("from irn_pipeline.stages.make_cam import STAGE", "stages.make_cam") == []
    for source in (
        "def helper(): ...",
        "from irn_pipeline.stages.train_cam import STAGE",
        "from irn_pipeline.ops.crf import crf",
        "import numpy",
    ):
        assert len(more_than_a_command(source, "stages.make_cam")) == 1


def test_print_is_seen_and_its_name_in_text_is_not():
    assert prints("def f():\n    print('x')\n", "m") == ["m:2 prints"]
    assert prints("text = 'print(1)'  # print(2)\nfingerprint(3)\n", "m") == []


def test_length_is_counted_in_lines():
    assert too_long("\n" * MAX_LINES, "m") == []
    assert too_long("\n" * (MAX_LINES + 1), "m") == [f"m has {MAX_LINES + 1} lines, over {MAX_LINES}"]


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f(a, *, b: int) -> None: ...", ["a"]),
        ("def f(*args, **kwargs) -> None: ...", ["args", "kwargs"]),
        ("async def f(a: int): ...", ["result"]),
        ("class A:\n    def __init__(self, a) -> None: ...", ["a"]),
        ("class A:\n    @staticmethod\n    def f(a) -> None: ...", ["a"]),
        ("class A:\n    @classmethod\n    def f(cls, a: int) -> None: ...", []),
        ("def _hidden(a): ...\nclass _Hidden:\n    def f(self): ...", []),
        ("def f(a: int) -> int:\n    def inner(b): ...\n    return a", []),
    ],
)
def test_missing_annotation_is_seen(source, missing):
    assert [complaint.split(": ")[1] for complaint in unannotated(source, "m")] == missing
