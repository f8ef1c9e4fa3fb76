"""How a long computation reports, wherever a function takes `say` or `progress`.

say(line) is called with a line for people, progress(done, total, text) with how far something is.
The package prints nothing on its own: the command line passes functions that print, and a script
passes its own or leaves the default.
"""

from __future__ import annotations


def quiet(*anything: object) -> None:
    """Report nothing."""
