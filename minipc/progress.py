"""How a long computation reports, wherever a function takes `say` or `progress`.

say(line) receives one line for people; progress(done, total, text) receives the progress so far.
The package itself prints nothing: the command line passes functions that print; a script passes
its own functions or keeps the default.
"""

from __future__ import annotations


def quiet(*anything: object) -> None:
    """Report nothing."""
