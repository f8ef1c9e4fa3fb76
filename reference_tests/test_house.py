"""The rules of the house, held by tests: import order, light imports, four dependencies."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minipc"

ORDER = """
errors streams files hdf5 backend
nn.params nn.ops nn.losses nn.workspace nn.products nn.winners nn.fused nn.pointnet nn.optim nn.gradcheck
data.prepare data.clouds data.packed data.text_points data.point_files data.foreign_hdf5 data.formats data.shapes
model_file augment
record.fields record.plan record.embedded record.finished record.shard record.store record.reader record.recorder
record.verify record.workers record.scheduler
evaluate self_target checkpoint run_folder train
audit.vectors audit.problems audit.facts audit.rules audit.checks audit.mutants
audit.teacher audit.bound audit.conventions
jobs runs describe environment first_run
cli.options cli.show cli.record cli.verify cli.train cli.eval cli.predict cli.data cli.info cli.audit cli.loss
cli.doctor cli.main __main__
""".split()


def modules_of(package):
    """Return {dotted name below the package: path}, packages' own __init__ included."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports_of(name, path, known):
    """Return the modules of the package that one file imports, relative imports resolved."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = path.name == "__init__.py"
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join(["minipc", *above, *([node.module] if node.module else [])])
            targets = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        imported |= {t.removeprefix("minipc.") for t in targets if t.startswith("minipc.")} & known
    return imported


def upward_imports(package, order):
    """Return (importer, imported) for every import that does not go up the list."""
    modules = modules_of(package)
    place = {name: i for i, name in enumerate(order)}
    wrong = []
    for name, path in modules.items():
        if path.name == "__init__.py":
            continue
        for imported in imports_of(name, path, set(modules)):
            if modules[imported].name != "__init__.py" and place[imported] >= place[name]:
                wrong.append((name, imported))
    return wrong


def test_every_module_has_its_place_in_the_order():
    modules = {name for name, path in modules_of(PACKAGE).items() if path.name != "__init__.py"}
    assert modules == set(ORDER)


def test_a_module_imports_only_from_modules_above_its_own():
    assert upward_imports(PACKAGE, ORDER) == []


@pytest.mark.parametrize("statement", [
    "from minipc.train import train",
    "import minipc.train",
    "from minipc import train",
    "from .. import train",
    "from ..train import train",
    "def late():\n    from minipc.train import train",
])
def test_a_planted_upward_import_is_found(tmp_path, statement):
    for name, text in {"__init__": "", "nn/__init__": "", "nn/ops": statement, "train": ""}.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert upward_imports(tmp_path, ["nn.ops", "train"]) == [("nn.ops", "train")]


def test_init_files_hold_nothing_but_the_version():
    for path in PACKAGE.rglob("__init__.py"):
        lines = path.read_text().splitlines()
        assert len(lines) <= 1 and all(line.startswith("__version__ = ") for line in lines), path


def loaded_by(code):
    """Return the top-level modules loaded in a fresh interpreter that runs code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_import_minipc_loads_no_dependency():
    assert not loaded_by("import minipc") & {"numpy", "scipy", "h5py", "click", "cupy"}


@pytest.mark.parametrize("arguments", [["--help"], ["record", "--help"], ["train", "--help"], ["info", "-h"]])
def test_help_loads_no_numerical_library(arguments):
    code = f"from minipc.cli.main import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert not loaded_by(code) & {"numpy", "scipy", "h5py", "cupy"}


def test_the_engine_loads_no_file_format_and_no_command_line():
    assert not loaded_by("import minipc.nn.pointnet, minipc.nn.losses") & {"h5py", "click", "cupy"}


def names_cupy(source):
    """Return whether a source imports cupy or anything below it."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    return any(name.partition(".")[0] == "cupy" for name in imported)


def test_only_backend_names_cupy():
    assert {path.name for path in PACKAGE.rglob("*.py") if names_cupy(path.read_text())} == {"backend.py"}
    assert names_cupy("from cupy import ndarray") and names_cupy("def f():\n    import cupy.cuda as c")


def test_core_dependencies_are_the_four():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["install_requires"].split() == ["numpy>=2.0", "scipy", "h5py", "click"]


def test_pyproject_holds_the_build_system_alone():
    tables = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("[")]
    assert tables == ["[build-system]"]


MATHEMATICS = "errors streams backend augment evaluate self_target train".split()  # beside nn/


def test_the_package_stays_readable_in_an_afternoon():
    """The mathematics is one afternoon; files, formats and the command line are there for reference."""
    lines = {name: len(path.read_text().splitlines()) for name, path in modules_of(PACKAGE).items()}
    assert sum(count for name, count in lines.items() if name.startswith("nn.") or name in MATHEMATICS) <= 2500
    assert sum(lines.values()) <= 11100
    assert max(lines.values()) <= 400, max(lines, key=lines.get)
