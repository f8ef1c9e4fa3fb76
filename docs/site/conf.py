"""How Sphinx reads the pages: plain Markdown in, pages with typeset formulas out.  See build.py."""

import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
sys.path[:0] = [str(SITE), str(ROOT)]

import formulas  # noqa: E402  it lies beside this file

import minipc  # noqa: E402  of this checkout, not an installed one

project = "minipc"
author = "the minipc authors"
release = version = minipc.__version__
html_title = f"minipc {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".py": "markdown", ".toml": "markdown"}
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "play.md"),
    *("docs/*.md", "docs/tutorial/**", "docs/studies/**"),
    *("examples/*.py", "examples/*.toml", "api/*.md"),
]
exclude_patterns = ["docs/tutorial/**/*.py"]  # a lesson's own code is no page
root_doc = "README"

html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_copyright = html_show_sphinx = False
pygments_style, pygments_dark_style = "tango", "github-dark"
smartquotes = False  # a command in quotes can be copied
nitpicky = False  # types of other libraries have no page here

myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["cupy", "distributed", "threadpoolctl", "torch"]
python_maximum_signature_line_length = 88

# The order of reading; what is not named comes after what is.
CHAPTERS = {
    "Use": ["using", "torch", "export", "settings", "mistakes"],
    "Mathematics": [
        *("math", "conventions", "negative_weights", "gradient_checking", "conformance"),
        "fast_engine",
    ],
    "Files": ["record_format", "file_formats", "reliability", "scale", "gpu"],
    "Measured": ["results", "performance"],
    "Code": ["reading", "releasing"],
}


# The tree of pages


def table_of_contents(source):
    """Return the tree of the pages that are there, as a hidden directive behind the front page."""

    def there(folder, pattern="*"):
        paths = sorted(Path(source, folder).glob(pattern))
        return [
            path.relative_to(source).with_suffix("").as_posix()
            for path in paths
            if path.suffix in source_suffix and path.name != "__init__.py"
        ]

    named = {f"docs/{name}" for names in CHAPTERS.values() for name in names}
    rest = [name for name in there("docs", "*.md") if name not in named]
    parts = {"Lessons": there("docs/tutorial", "**/*.md")}
    if Path(source, "play.md").exists():
        parts["Lessons"].append("play")
    parts |= {chapter: [f"docs/{name}" for name in names] for chapter, names in CHAPTERS.items()}
    parts["Files"] += rest
    parts["Measured"] += there("docs/studies", "**/*")
    parts["Code"] += ["api/index", "CONTRIBUTING", "CHANGELOG"]
    parts["Examples"] = there("examples")
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n:caption: {name}\n\n"
        + "\n".join(pages)
        + "\n```\n"
        for name, pages in parts.items()
        if pages
    )


def read_page(app, name, source):
    """Turn an example or a study into Markdown; add the tree to the front page."""
    path = Path(app.env.doc2path(name))
    if path.suffix in (".py", ".toml"):
        language = {".py": "python", ".toml": "toml"}[path.suffix]
        source[0] = f"# {path.name}\n\n````{language}\n{source[0]}````\n"
    if name == root_doc:
        source[0] += table_of_contents(app.srcdir)


# Formulas

WITH_EQUATIONS = ("docs/math", "docs/fast_engine")
WITH_FORMULAS = (*WITH_EQUATIONS, "docs/negative_weights", "docs/gradient_checking")
WITH_LETTERS = (*WITH_FORMULAS, "docs/conformance", "docs/conventions")
EQUATION = re.compile(r"^ {4,}\S.*\s\(([A-Z]\d+)\)$", re.MULTILINE)
TAG = re.compile(r"\(([A-Z]\d+)\)")


def find_equations(app):
    """Note which page holds each tagged equation."""
    app.equations = {
        tag: page
        for page in WITH_EQUATIONS
        for tag in EQUATION.findall(Path(app.srcdir, f"{page}.md").read_text(encoding="utf-8"))
    }


def _fresh_text(node):
    """Return the texts of a page outside of code, links and headings."""
    skipped = (nodes.literal, nodes.literal_block, nodes.reference, nodes.title, nodes.raw)
    for text in list(node.findall(nodes.Text)):
        above = text.parent
        while above is not None and not isinstance(above, (*skipped, addnodes.pending_xref)):
            above = above.parent
        if above is None:
            yield text


def set_formulas(app, page):
    """Typeset the indented blocks and the letters of the pages of mathematics."""
    name = app.env.docname
    lesson = name.startswith("docs/tutorial/")
    if name in WITH_FORMULAS or lesson:
        for found in list(page.findall(nodes.literal_block)):
            if not found.get("language") or found["language"] == "none":
                formula = formulas.block(found.astext())
                found.replace_self(nodes.raw("", formula, format="html"))
    if name in WITH_LETTERS or lesson or name.startswith("api/"):
        for text in _fresh_text(page):
            made = []
            for base, sub, sup in formulas.inline(text.astext()):
                made.append(nodes.Text(base))
                made += [nodes.subscript("", sub)] if sub else []
                made += [nodes.superscript("", sup)] if sup else []
            if len(made) > 1:
                text.parent.replace(text, made)


class LinkEquations(SphinxPostTransform):
    """Makes a tag such as (M13) in a sentence, on any page, a link to its equation."""

    default_priority = 900

    def run(self):
        for text in _fresh_text(self.document):
            made, at, words = [], 0, text.astext()
            for match in TAG.finditer(words):
                page = self.app.equations.get(match[1])
                if page is None:
                    continue
                uri = self.app.builder.get_relative_uri(self.env.docname, page)
                uri += f"#{formulas.equation_id(match[1])}"
                made += [nodes.Text(words[at : match.start()])]
                made += [nodes.reference("", match[0], refuri=uri, internal=True)]
                at = match.end()
            if made:
                text.parent.replace(text, [*made, nodes.Text(words[at:])])


class LinkPlainPages(SphinxPostTransform):
    """Makes a link to a page of docs/play lead to it, where Sphinx would offer a download."""

    default_priority = 5

    def run(self):
        here = Path(self.env.docname).parent
        for link in list(self.document.findall(addnodes.download_reference)):
            target = link["reftarget"]
            path = (Path(self.env.srcdir) / here / target).resolve()
            if target.startswith("/"):
                path = Path(self.env.srcdir, target[1:]).resolve()
            place = path.relative_to(Path(self.env.srcdir).resolve())
            if place.parts[:2] == ("docs", "play"):
                up = "../" * len(here.parts)
                reference = nodes.reference("", "", *link.children, refuri=up + place.as_posix())
                link.replace_self(reference)


# Docstrings: plain prose, in which a star is a star


def plain_docstring(app, what, name, obj, options, lines):
    """Turn a docstring of plain text into reStructuredText that says the same."""
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = []
    paragraphs, done = "\n".join(lines).strip("\n").split("\n\n"), []
    for paragraph in paragraphs:
        rows = paragraph.split("\n")
        rows = [row for row in rows if row.strip()]
        if not rows:
            continue
        if all(row.startswith("    ") for row in rows) or _is_table(rows):
            done += ["::", "", *(f"    {row}" for row in rows), ""]
        elif any(row.startswith(" ") or "    " in row for row in rows):
            done += [f"| {line}" for row in rows for line in _lines(row)] + [""]
        else:
            done += [_escaped(row) for row in rows] + [""]
    lines[:] = done


def _is_table(rows):
    """Return whether rows stand in columns, which only equal widths of letters keep."""
    return len(rows) > 1 and sum("    " in row.strip() for row in rows) > 1


def _lines(row):
    """Return a row in the lines that a wide space divides: an equation, then its shapes."""
    return [_escaped(part) for part in re.split(r" {4,}", row.strip()) if part]


def _escaped(row):
    """Return a row with every mark of reStructuredText taken as it stands, and code as code."""
    parts = re.split(r"(`[^`]+`)", row)
    return "".join(
        f"`{part}`" if index % 2 else re.sub(r"([\\*`_|:.\-+>=()\[\]])", r"\\\1", part)
        for index, part in enumerate(parts)
    )


def no_fields(app, what, name, obj, skip, options):
    """Leave out the fields of a NamedTuple: its signature shows them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    app.connect("builder-inited", find_equations)
    app.connect("source-read", read_page)
    app.connect("doctree-read", set_formulas)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-skip-member", no_fields)
    app.add_post_transform(LinkEquations)
    app.add_post_transform(LinkPlainPages)
