"""python -m minipc and the command minipc: the command line, which Ctrl-C ends at any moment."""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any


def main() -> None:
    """Run the command line; Ctrl-C during import or exit also ends without a traceback."""
    sys.unraisablehook = _interrupt_again
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        if stream is not None:
            # the terminal may not be able to show a class name
            stream.reconfigure(errors="backslashreplace")
    try:
        from minipc.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        os.write(2, b"minipc: interrupted\n")
        sys.exit(130)


def _interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """Repeat an interruption that Python dropped, in a finaliser or a weak reference."""
    if lost.exc_type is KeyboardInterrupt:
        with suppress(RuntimeError):  # too late for a thread: the process ends anyway
            main_thread = threading.main_thread().ident
            threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    main()
