"""Reading a page of the documentation: sections, tables, code marks and numbers, never sentences.

A test that reads a table lets everybody reword the page around it.
"""

import re


def section(text, heading):
    """Return the text below a heading, up to the next one of any level."""
    (found,) = re.findall(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL
    )
    return found


def tables(text):
    """Return each table as a list of rows of cells, without its head.

    A cell that is code alone loses its marks.
    """
    found = []
    for block in re.findall(r"(?:^ *\|.*\n)+", text, re.MULTILINE):
        rows = [
            [cell.strip() for cell in re.split(r"(?<=\s)\|(?=\s)", line.strip().strip("|"))]
            for line in block.splitlines()
        ]
        found.append([[re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in row] for row in rows[2:]])
    return found


def table(text, heading, number=0):
    """Return one table of a section, the first unless numbered."""
    return tables(section(text, heading))[number]


def code(text):
    """Return what stands between code marks."""
    return re.findall(r"`([^`]+)`", text)


def numbers(text):
    """Return the numbers of a text, in order, as floats."""
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?", text)]
