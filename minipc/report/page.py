"""One HTML page that needs nothing else: no network, no script library, the same bytes each time.

The policy in its head forbids the browser to load anything at all, so a page opened from a USB
stick is whole, and a page made from hostile names still cannot call home.
"""

import os
from contextlib import suppress
from html import escape
from os import PathLike

from minipc.storage import files
from minipc.storage.places import check_new_file

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

# The names of the colours are what the styles of a part use: ink on paper, faint text, lines,
# panels, and one accent.  Each has a value for light and for dark; paper is printed light.
STYLE = """
:root { color-scheme: light dark; --ink: #1c1d21; --paper: #ffffff; --faint: #5d6068;
  --line: #d3d5da; --panel: #f4f5f7; --accent: #1f5fa8; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e7ea; --paper: #17181b; --faint: #a3a7b0; --line: #3a3d44; --panel: #212327;
    --accent: #7ab3f0; } }
@media print { :root { color-scheme: light; } }
* { box-sizing: border-box; }
html { font: 100%/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { max-width: 64rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1rem 0; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 0.75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
p, ul, ol, dl { max-width: 42rem; margin: 0.75rem 0; }
a { color: var(--accent); }
code, pre, kbd { font: 0.9em/1.45 ui-monospace, monospace; }
pre { padding: 0.75rem; background: var(--panel); border-radius: 0.3rem; overflow-x: auto; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
figure { margin: 1rem 0; }
figcaption, caption, .faint { color: var(--faint); font-size: 0.9rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 0.4rem; }
th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: left; vertical-align: baseline; }
th.number, td.number { text-align: right; }
thead th { border-bottom: 2px solid var(--line); white-space: nowrap; }
tbody tr { border-bottom: 1px solid var(--line); }
@media print {
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  pre { white-space: pre-wrap; }
}
"""


def page(
    title: str, body: str, *, styles: str = "", scripts: str = "", maker: str = "minipc"
) -> str:
    """Return the text of one HTML document; write_page makes a file of it.

    title: plain text, also the heading; body: HTML below it; styles, scripts: CSS and JavaScript of
    its parts; maker: the command that may write it anew, as "minipc report".  A table that may be
    wide stands in <div class="scroll" tabindex="0">; a cell of class "number" is set right.  A
    character that UTF-8 lacks, as in a file name of other bytes, becomes its escape.
    """
    script = f"<script>{scripts}</script>\n" if scripts else ""
    text = (
        f'{_start(maker)}<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{styles}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n{script}</body>\n</html>\n"
    )
    return text.encode("utf-8", "backslashreplace").decode()


def _start(maker: str) -> str:
    """Return the first bytes of a page, by which check_page knows its own."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{escape(maker)}">\n'
    )


def check_page(path: str | PathLike, maker: str = "minipc") -> None:
    """Raise UsageError if path holds anything but a page of this maker; DataError for its folder.

    Such a page may be replaced: it is made again from the files that it shows.
    """
    start = _start(maker).encode()
    if os.path.isfile(path):  # not a pipe, which would wait
        with suppress(OSError), open(path, "rb") as file:
            if file.read(len(start)) == start:
                return
    check_new_file(path)


def write_page(path: str | PathLike, text: str, maker: str = "minipc") -> int:
    """Commit the text of a page to path, and return its bytes.  Raises the errors of check_page."""
    check_page(path, maker)
    data = text.encode()
    files.commit(path, data)
    return len(data)
