"""Builds the site of the documentation: `make docs`, or  python docs/site/build.py FOLDER.

Sphinx reads a copy of the pages in FOLDER/source, laid out like the repository, so every link of a
page holds on the site as well; pages that exist nowhere else (of the modules, and of docs/play)
are written there.  The site is FOLDER/html.  A warning is an error.  Nothing is fetched, by the
build or by a reader.
"""

import ast
import html
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent

TOP = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"),
    *("setup.cfg", "Makefile"),
)
COPIED = ("docs", "examples", "minipc", "reference_tests")  # what pages link to
LEFT = ("__pycache__", "site", "*.h5", "frozen", "*.pyc")

PARTS = {
    "errors": "What everything stands on",
    "storage": "Files on disk",
    "nn": "Operations, loss, engines",
    "models": "Models",
    "data": "Data",
    "record": "Recording and replay",
    "distil": "Training",
    "runs": "Run folders",
    "audit": "Audit",
    "verbs": "Verbs, on files",
    "torch": "With PyTorch",
    "report": "What people read",
}


LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)\)")


def without_folders(page, source):
    """Turn each link of a page to a folder, which a site cannot show, into words."""

    def told(match):
        target = (page.parent / match[2]).resolve()
        if not target.is_dir():
            return match[0]
        place = target.relative_to(source).as_posix()
        if place == "docs/play":
            return f"[{match[1]}]({'../' * (len(page.relative_to(source).parts) - 1)}play.md)"
        return f"{match[1]} (`{place}/`)"

    text = page.read_text(encoding="utf-8")
    page.write_text(LINK.sub(told, text), encoding="utf-8")


def copy_pages(source):
    """Lay out in source what the pages are, and what they link to."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in TOP:
        shutil.copy(ROOT / name, source / name)
    for name in COPIED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*LEFT))
    for page in (*source.glob("*.md"), *(source / "docs").rglob("*.md")):
        without_folders(page, source)


def modules():
    """Return {dotted name: first line of its docstring} of the modules that have public names."""
    found = {}
    for path in sorted((ROOT / "minipc").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name in ("__init__.py", "__main__.py") or "cli" in parts:
            continue  # the command line is told by its own --help and by docs/settings.md
        document = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        found[".".join(parts)] = document.split("\n")[0]
    return found


def write_module_pages(source):
    """Write a page for each module, and one that lists them by part of the package."""
    folder = source / "api"
    folder.mkdir()
    of_part = {part: [] for part in PARTS}
    for name, line in modules().items():
        part = name.split(".")[1]
        of_part.setdefault(part if name.count(".") > 1 else "errors", []).append((name, line))
        heading = f"# {name}\n\n"
        (folder / f"{name}.md").write_text(
            f"{heading}```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n"
            "   :member-order: bysource\n```\n"
        )
    lines = [
        "# Modules\n\nEvery module with its public functions, from their docstrings. "
        "[conventions](../docs/conventions.md) lists the letters of the shapes.\n"
    ]
    for part, members in of_part.items():
        lines.append(f"\n## {PARTS.get(part, part)}\n")
        lines += [f"* [{name}]({name}.md): {_as_markdown(line)}" for name, line in members]
    names = "\n".join(name for members in of_part.values() for name, _ in members)
    lines.append(f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n")
    (folder / "index.md").write_text("\n".join(lines))


def _as_markdown(line):
    """Return plain prose so that Markdown shows it as it stands."""
    return re.sub(r"([\\*_<>\[\]|])", r"\\\1", line)


def write_page_of_plays(source):
    """Write a page that leads to each page of docs/play, where there are any."""
    pages = sorted((source / "docs" / "play").glob("*.html"))
    if not pages:
        return
    lines = ["# Play\n"]
    for page in pages:
        title = re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8"), re.DOTALL)
        told = html.unescape(title.group(1).strip()) if title else page.stem
        lines.append(f"* [{_as_markdown(told)}](docs/play/{page.name})")
    (source / "play.md").write_text("\n".join(lines) + "\n")


def build(folder):
    """Build the site in folder; return 0, or another number where Sphinx found a fault."""
    from sphinx.cmd.build import main as sphinx

    source, site = Path(folder, "source").resolve(), Path(folder, "html").resolve()
    shutil.rmtree(site, ignore_errors=True)
    copy_pages(source)
    write_module_pages(source)
    write_page_of_plays(source)
    words = ["-b", "html", "-W", "--keep-going", "-q", "-c", str(SITE)]
    words += ["-d", str(Path(folder, "read").resolve()), str(source), str(site)]
    code = sphinx(words)
    if code == 0:
        shutil.copy(site / "README.html", site / "index.html")
        if (ROOT / "docs" / "play").is_dir():  # plain pages, as they are
            shutil.copytree(ROOT / "docs" / "play", site / "docs" / "play", dirs_exist_ok=True)
    return code


if __name__ == "__main__":
    sys.exit(build(sys.argv[1]))
