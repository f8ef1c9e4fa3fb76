"""The rules of the house, held by tests: import order, light imports, four dependencies."""

import ast
import configparser
import io
import os
import re
import subprocess
import sys
import tokenize
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from minipc.audit import checks, mutants
from minipc.data.clouds import read_clouds
from minipc.models.file import new_model, write_model
from minipc.models.pointnet import sizes

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "minipc"

ORDER = """
errors settings progress streams installed backend provenance
storage.locks storage.files storage.hdf5 storage.layout storage.places
nn.params nn.ops nn.kernels nn.losses nn.exact nn.optim nn.gradcheck nn.local nn.groups
nn.fast.workspace nn.graph nn.fast.products nn.fast.winners nn.fast.fused nn.fast.pointwise
nn.fast.local nn.fast.local_eval nn.engine
nn.levels nn.widening models.inputs models.pointnet models.pointnet2 models.model
data.prepare data.clouds data.duplicates data.check data.groups_file data.augment data.shapes
data.readers.packed data.readers.text_points data.readers.lines data.readers.surface
data.readers.ply data.readers.off data.readers.obj data.readers.stl data.readers.pcd
data.readers.limits data.readers.las data.readers.point_files data.readers.standard_input
data.readers.foreign_hdf5
data.readers.modelnet data.readers.modelnet_texts data.readers.shapenet_part
data.readers.scanobjectnn data.readers.tree data.readers.limited data.readers.source
models.file models.checkpoint
record.fields record.plan record.embedded record.writer record.reader record.shard record.parts
record.store record.recording record.contract record.blocks record.recorder record.function
record.verify record.parallel.processes record.parallel.scheduler
distil.evaluate distil.self_target distil.statistics distil.averaging distil.augmentation
distil.state distil.steps distil.train runs.folder runs.config runs.predictions runs.compare
runs.logits_file
audit.vectors audit.problems audit.facts audit.rules audit.neighbours audit.weights
audit.checks audit.mutants
audit.teacher audit.bound audit.conventions
export.described export.folding export.rounding export.int8 export.c_program export.compiled
export.onnx_graph export.state_dict export.safetensors_file
verbs.find verbs.record verbs.verify verbs.train verbs.evaluate verbs.predict verbs.audit
torch.present torch.loss torch.state_dict torch.modules torch.checkpoints
torch.published torch.dataset torch.teacher torch.record
verbs.export verbs.bench
report.describe report.environment report.confusion report.lines.text report.lines.info
report.lines.data report.lines.record report.lines.train report.lines.evaluate report.lines.export
report.lines.audit report.lines.loss report.lines.doctor report.page report.clouds
report.braille report.gallery report.compare verbs.compare verbs.demo
report.charts report.commands report.run.facts report.run.parts report.run.curves
report.run.results report.run.settings report.run.classes report.run.bound report.run.errors
report.run.made report.run_page verbs.report verbs.show
cli.terminal cli.hints cli.completion cli.options cli.show
cli.record cli.verify cli.train cli.compare cli.eval cli.predict cli.info
cli.data cli.audit cli.loss cli.export cli.bench cli.report cli.doctor cli.main __main__
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


@pytest.mark.parametrize(
    "statement",
    [
        "from minipc.train import train",
        "import minipc.train",
        "from minipc import train",
        "from .. import train",
        "from ..train import train",
        "def late():\n    from minipc.train import train",
    ],
)
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
    """Return the names of the modules loaded in a fresh interpreter that runs code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_import_minipc_loads_no_dependency():
    assert not loaded_by("import minipc") & {"numpy", "scipy", "h5py", "click", "cupy"}


def loaded_by_command(*arguments):
    """Return the names of the modules that one command line loads; it must succeed."""
    run = f"try:\n    main({arguments})\nexcept SystemExit as end:\n    assert not end.code"
    return loaded_by(f"from minipc.cli.main import main\n{run}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["record", "--help"],
        ["train", "--help"],
        ["info", "-h"],
        ["--version"],
    ],
)
def test_help_and_version_load_no_numerical_library(arguments):
    assert not loaded_by_command(*arguments) & {"numpy", "scipy", "h5py", "cupy"}


def test_what_takes_longer_to_import_than_a_cloud_to_predict_is_not_imported(data, folder):
    """scipy.special and scipy.sparse take longer than all else together, and are not needed."""
    splits = read_clouds(data)
    write_model("model.h5", new_model(sizes("tiny", 3), splits.test.described, seed=0))
    np.save("cloud.npy", splits.test.points[0])
    model, cloud = str(folder / "model.h5"), str(folder / "cloud.npy")
    predicts = loaded_by_command("predict", model, cloud)
    assert "minipc.verbs.predict" in predicts and not predicts & {
        "scipy",
        "multiprocessing",
        "minipc.verbs.find",
        "minipc.record",
        "minipc.distil.train",
        "minipc.audit",
    }
    for others in (["info", model], ["eval", model, str(folder / data)]):
        assert not loaded_by_command(*others) & {"scipy", "minipc.distil.train", "minipc.audit"}


def test_recording_and_training_do_not_import_the_audit(data, folder):
    write_model("model.h5", new_model(sizes("tiny", 3), read_clouds(data).test.described, seed=0))
    model, data = str(folder / "model.h5"), str(folder / data)
    records = loaded_by_command("record", data, "--teacher", model, "--dry-run")
    trains = loaded_by_command("train", data, "--labels-only", "--dry-run")
    assert "minipc.verbs.record" in records and "minipc.verbs.train" in trains
    assert not (records | trains) & {"minipc.audit", "minipc.verbs.audit"}


def test_the_engine_loads_no_file_format_and_no_command_line():
    assert not loaded_by("import minipc.models.pointnet, minipc.nn.losses") & {
        "h5py",
        "click",
        "cupy",
    }


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
    assert {path.name for path in PACKAGE.rglob("*.py") if names_cupy(path.read_text())} == {
        "backend.py"
    }
    assert names_cupy("from cupy import ndarray") and names_cupy(
        "def f():\n    import cupy.cuda as c"
    )


def requirements(*extras):
    """Return {name: lowest version} of the core dependencies in setup.cfg and of some extras."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    for extra in extras:
        lines += setup["options.extras_require"][extra].split()
    return {name: lowest for name, _, lowest in (line.partition(">=") for line in lines)}


TRIED = ("test", "threads", "dask")  # the extras whose lowest versions `make test-oldest` tries


def test_core_dependencies_are_the_four():
    assert list(requirements()) == ["numpy", "scipy", "h5py", "click"]


def test_every_dependency_has_a_lowest_version():
    assert all(requirements(*TRIED).values()), requirements(*TRIED)


def test_the_extras_of_a_device_bring_the_libraries_of_cuda():
    """Before 14, and without ctk, CuPy installs and has no compiler."""
    assert requirements("gpu12").items() >= {"cupy-cuda12x[ctk]": "14"}.items()
    assert requirements("gpu13").items() >= {"cupy-cuda13x[ctk]": "14"}.items()


@pytest.mark.skipif(os.environ.get("MINIPC_OLDEST") != "1", reason="not by make test-oldest")
def test_the_oldest_environment_holds_the_lowest_versions_that_setup_cfg_admits():
    lowest = requirements(*TRIED)
    assert {name: version(name) for name in lowest} == lowest


def test_the_readme_names_the_lowest_versions():
    lines = (ROOT / "README.md").read_text().splitlines()
    (row,) = (line.split("|")[2:-1] for line in lines if line.startswith("| lowest "))
    lowest = requirements(*TRIED)
    assert [cell.strip() for cell in row[1:]] == [
        lowest[n] for n in "numpy scipy h5py click distributed".split()
    ]


def test_pyproject_holds_the_build_system_and_what_ruff_reads_nowhere_else():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    tables = [line for line in lines if line.startswith("[")]
    assert tables == ["[build-system]", "[tool.ruff]", "[tool.ruff.lint]"]


MOST_TOKENS = 16_000  # of the afternoon: what a reader needs to understand method and mathematics
# What a level of neighbours adds, once its operations (nn.local) are understood.
NEIGHBOURHOODS = {
    "nn.groups",
    "nn.fast.pointwise",
    "nn.fast.local",
    "nn.levels",
    "models.pointnet2",
}
AUGMENTATION = {"nn.widening", "distil.augmentation"}  # a network may be trained without it
# The same products and levels once more, in the form that is fast on a machine.
SPEED_ALONE = {
    "nn.fast.products",
    "nn.fast.winners",
    "nn.fast.local_eval",
    "nn.kernels",
    "nn.graph",
}
COUNTED = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)


def tokens_of(path):
    """Return the tokens of Python in a file: names, operators, numbers and strings.

    Comments and type annotations, each with its ":" or "->", do not count.
    """
    source = path.read_text("ascii")  # so the columns of the tree are those of the tokens
    nodes = list(ast.walk(ast.parse(source)))
    types = [getattr(node, name, None) for node in nodes for name in ("annotation", "returns")]
    spans = [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        for node in types
        if node is not None
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    counted = [token.start for token in tokens if token.type in COUNTED]
    of_types = sum(first <= at < end for at in counted for first, end in spans)
    return len(counted) - of_types - len(spans)


def test_type_annotations_are_not_counted(tmp_path):
    typed, bare = tmp_path / "typed.py", tmp_path / "bare.py"
    typed.write_text("def f(x: dict[str, int], *, y: int = 1) -> list[int]:\n    z: int = x\n")
    bare.write_text("def f(x, *, y=1):\n    z = x  # a comment\n")
    assert tokens_of(typed) == tokens_of(bare)


def marked(mark):
    """Return the modules that the list of files marks so."""
    line = rf"^\| {re.escape(mark)} `minipc/([\w/]+)\.py` "
    found = re.findall(line, (ROOT / "docs/reading.md").read_text(), re.M)
    return {name.replace("/", ".") for name in found}


def test_the_starred_files_are_method_and_mathematics():
    of_bytes = {"models.file", "models.checkpoint"}
    names = {name for name in ORDER if name.startswith(("nn.", "models."))} - of_bytes
    others = NEIGHBOURHOODS | AUGMENTATION | SPEED_ALONE
    assert marked("*") == names - others | {"distil.train", "distil.self_target"}
    assert marked("+") == NEIGHBOURHOODS
    assert marked("o") == AUGMENTATION


def test_method_and_mathematics_are_an_afternoon():
    tokens = {name: tokens_of(modules_of(PACKAGE)[name]) for name in marked("*")}
    assert sum(tokens.values()) <= MOST_TOKENS, tokens


def test_neighbourhoods_are_three_quarters_of_an_afternoon_more():
    tokens = {name: tokens_of(modules_of(PACKAGE)[name]) for name in marked("+")}
    assert sum(tokens.values()) <= 0.75 * MOST_TOKENS, tokens


def test_the_front_page_counts_what_it_promises():
    front = (ROOT / "README.md").read_text()
    assert f"in {len(checks.LINES)} lines" in front
    assert f"it breaks {len(mutants.MUTANTS)} things on purpose" in front
    assert f"are {len(marked('*'))} files with fewer than {MOST_TOKENS:,} tokens" in front
