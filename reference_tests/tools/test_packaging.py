"""What is said of installing holds: extras, versions, the citation; in `make dist`, both archives.

MINIPC_DIST names the folder of a wheel and a source distribution; without it they are not read.
"""

import configparser
import os
import re
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import minipc
from reference_tests.tools.test_house import PACKAGE, ROOT

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = set(SETUP["options.extras_require"])
READ = [  # what people read: messages, pages, targets
    *PACKAGE.rglob("*.py"),
    *(ROOT / "examples").rglob("*.py"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "docs").rglob("*.ipynb"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")),
]
# A text may be cut in the middle, by the lines of a page or of a string.
CUT = re.compile(r"[\"'`]?\s*\n\s*(?:#\s*)?f?[\"'`]?")


def promised(text):
    """Return what a text promises of an index: installing minipc by its bare name."""
    return re.findall(r"pip install (?:-\S+ )*[\"'`]?minipc\b|minipc\[\w+\]", CUT.sub(" ", text))


def named(text):
    """Return the extras that a text names as they are typed in a checkout."""
    return {
        extra
        for some in re.findall(r"[\"']\.\[([\w,]+)\][\"']", CUT.sub(" ", text))
        for extra in some.split(",")
    }


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_promises_a_package_on_an_index_and_every_extra_is_one(path):
    text = path.read_text()
    assert promised(text) == [] and named(text) <= EXTRAS


def test_such_a_promise_would_be_found():
    for text in (
        "pip install minipc",
        "`pip install 'minipc[dask]'`",
        'f"({reason}); pip install "\n            f"minipc[dask]"',
        "pip install --upgrade minipc",
        "install minipc[gpu12] or so",
    ):
        assert promised(text), text
    assert not promised("pip install -e '.[dask]'") and not promised("names[index]")
    assert named("pip install -e '.[dask]' or '.[gpu12,test]'") == {"dask", "gpu12", "test"}


def test_every_extra_of_a_message_is_named_as_it_works_from_a_checkout():
    said = set().union(*(named(path.read_text()) for path in PACKAGE.rglob("*.py")))
    assert {"gpu12", "gpu13", "threads", "dask"} <= said


def test_the_classifiers_name_the_versions_of_python_that_the_readme_says_were_tested():
    lines = (ROOT / "README.md").read_text().splitlines()
    rows = [line.split("|")[2].strip() for line in lines if re.match(r"\| (low|new)est ", line)]
    python = "Programming Language :: Python :: 3."
    listed = SETUP["metadata"]["classifiers"].split("\n")
    assert [line.removeprefix(python) for line in listed if line.startswith(python)] == [
        row.split(".")[1] for row in rows
    ]
    assert SETUP["options"]["python_requires"] == f">=3.{rows[0].split('.')[1]}"


def citation():
    """Return [(depth, key, value)] of the lines of CITATION.cff, a small part of YAML."""
    found = []
    text = re.sub(r">-\n((?: {6}.*\n)+)", lambda m: " ".join(m[1].split()) + "\n",
                  (ROOT / "CITATION.cff").read_text())  # fmt: skip
    for line in text.splitlines():
        match = re.fullmatch(r"((?:  )*)((?:- )?)(?:([a-z-]+):(?: (.+))?|(.+))", line)
        assert match, line
        spaces, item, key, value, scalar = match.groups()
        told = (value or scalar or "").strip('"')
        found.append((len(spaces) // 2 + bool(item), key, told))
        bare = value and not value.startswith('"')
        assert not (bare and re.search(r": |^[\[{&*!|>%@`#]", value)), f"{line}: needs quotes"
    return found


def test_the_citation_is_of_this_version_and_names_both_papers():
    lines = citation()
    top = {key: value for depth, key, value in lines if depth == 0}
    assert top["cff-version"] == "1.2.0" and top["type"] == "software"
    assert {"message", "title", "authors", "references"} <= set(top)
    assert top["version"] == minipc.__version__ and top["license"] == SETUP["metadata"]["license"]
    links = [value for depth, key, value in lines if key == "url"]
    assert links == [f"https://arxiv.org/abs/{number}" for number in ("2409.02020", "2402.19264")]
    allowed = set(
        "cff-version message title type authors name version license keywords references year url "
        "family-names given-names identifiers value".split()
    )  # of the schema 1.2.0, which allows no others
    assert {key for _, key, _ in lines if key} <= allowed


def test_the_list_for_a_release_names_this_version():
    text = (ROOT / "docs/releasing.md").read_text()
    assert set(re.findall(r"\d+\.\d+\.\d+", text)) == {minipc.__version__}
    assert f"## {minipc.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# The archives


@pytest.fixture
def archives():
    """The paths of the wheel and of the source distribution."""
    folder = os.environ.get("MINIPC_DIST")
    if not folder:
        pytest.skip("MINIPC_DIST names no folder; make dist builds one")
    (wheel,), (source,) = (sorted(Path(folder).glob(form)) for form in ("*.whl", "*.tar.gz"))
    return wheel, source


def files_below(folder):
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_alone_and_is_pure_python(archives):
    wheel, _ = archives
    assert wheel.name == f"minipc-{minipc.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = f"minipc-{minipc.__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{about}/METADATA").decode())
    assert {name for name in names if not name.startswith(f"{about}/")} == {
        name
        for name in files_below("minipc")
        if name.endswith((".py", "/py.typed", ".json")) or name.startswith("minipc/export/c/")
    }
    assert metadata["Version"] == minipc.__version__
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def test_the_source_distribution_holds_what_its_tests_need_and_no_junk(archives):
    _, source = archives
    with tarfile.open(source) as archive:
        sizes = {
            member.name.partition("/")[2]: member.size for member in archive if member.isfile()
        }
    for folder in ("minipc", "reference_tests", "examples", "docs"):
        there = files_below(folder)
        assert there <= set(sizes), sorted(there - set(sizes))
    tops = "README.md LICENSE CHANGELOG.md CITATION.cff CONTRIBUTING.md MANIFEST.in Makefile"
    tops += " pyproject.toml setup.cfg PKG-INFO"
    assert {name for name in sizes if "/" not in name} == set(tops.split())
    assert not [name for name in sizes if re.search(r"__pycache__|\.pyc$", name)]
    golden = "reference_tests/formats/golden/"
    assert all(name.startswith(golden) for name in sizes if name.endswith(".h5"))
    assert max(sizes.values()) < 1 << 20  # no data set hides here
