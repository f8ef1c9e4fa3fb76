"""The site of the documentation: formulas lose nothing, and the site is whole without a network.

The site is built where the extra `docs` is installed (a minute), or read from the folder that
MINIPC_SITE names, as `make docs` does.
"""

import html
import os
import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def of_site(name):
    """Return a module of docs/site, which is no package."""
    spec = spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


formulas = of_site("formulas")


def indented(page):
    """Return the lines of the indented blocks of a page."""
    return re.findall(r"^ {4}(.*\S)$", (DOCS / f"{page}.md").read_text(), re.MULTILINE)


def letters(text):
    """Return the letters and digits of a text in order, without what becomes a sign."""
    text = re.sub(r"(?<![^\W\d_])(δ?[xpmv])hat(?![^\W\d_])", r"\1", text)
    words = r"\bsum(?![^\W_]| of| over)|\bsqrt(?=\()|\bfloor(?=\()"
    return re.sub(r"[\W_]", "", re.sub(words, "", text))


def shown(markup):
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


@pytest.mark.parametrize("page", ["math", "fast_engine", "negative_weights", "gradient_checking"])
def test_a_typeset_formula_has_every_letter_and_number_of_the_plain_one_in_order(page):
    lines = indented(page)
    assert lines
    for line in lines:
        assert letters(shown(formulas.block(line))) == letters(line), line


@pytest.mark.parametrize(
    "text, markup",
    [
        ("x_ri", '<msub><mi class="letter">x</mi><mrow><mi>ri</mi></mrow></msub>'),
        ("2^-53", "<msup><mn>2</mn><mrow>"),
        ("sqrt(v + e)", "<msqrt><mrow>"),
        ("xhat", '<mover accent="true">'),
        ("that is", "<mi>that</mi>"),
        ("sum over rows", "<mi>sum</mi>"),
        ("sum_k q_k", "∑</mo><mrow>"),
        ("L_G(z)", '<mi class="letter">G</mi></mrow></msub>'),
        ("p_c(m)", '<mi class="letter">c</mi><mrow><mo'),
        ("running_mean", "<mi>running_mean</mi>"),
        ("a < b <= c", "&lt;"),
    ],
)
def test_a_sign_of_the_notation_becomes_its_element(text, markup):
    assert markup in formulas.math(text)


def test_a_long_formula_may_break_before_its_signs_and_a_tag_has_an_address():
    made = formulas.block("L(z) = (1-a) CE(y, s_1) + a T^2 KL(p || s_T) - b D        (L5)")
    assert made.count("<math>") == 4 and 'id="equation-l5"' in made
    assert '<span class="tag">(L5)</span>' in made


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the site, built with every warning an error."""
    if os.environ.get("MINIPC_SITE"):
        return Path(os.environ["MINIPC_SITE"])
    for name in ("sphinx", "myst_parser", "furo"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed (extra docs): the site was not built")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(DOCS / "site" / "build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def test_the_site_has_every_page_and_every_module(site):
    pages = [path.relative_to(ROOT).with_suffix(".html") for path in DOCS.glob("*.md")]
    pages += [path.relative_to(ROOT) for path in (DOCS / "play").glob("*.html")]
    modules = [f"api/{name}.html" for name in of_site("build").modules()]
    assert len(modules) > 80
    for page in ("index.html", "search.html", "searchindex.js", *pages, *modules):
        assert (site / page).is_file(), page
    assert (site / "docs" / "math.html").read_text().count("<math>") > 100
    assert "linear_forward" in (site / "api" / "minipc.nn.ops.html").read_text()


def test_a_page_of_the_site_loads_nothing_from_elsewhere(site):
    loads = r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"([^\"]*)|<link\b[^>]*?\bhref=\"([^\"]*)"
    for page in site.rglob("*.html"):
        for source in map("".join, re.findall(loads, page.read_text())):
            assert not re.match(r"(?:https?:)?//", source), (page, source)


def test_a_tag_in_a_sentence_leads_to_its_equation(site):
    text = (site / "docs" / "conformance.html").read_text()
    assert 'href="math.html#equation-l7"' in text
    assert 'id="equation-l7"' in (site / "docs" / "math.html").read_text()
