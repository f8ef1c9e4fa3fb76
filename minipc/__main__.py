"""python -m minipc, and the command minipc: the command line, and an end by Ctrl-C at any
moment.
"""

import os
import signal
import sys
import threading
from contextlib import suppress


def main():
    """Run the command line; an interruption while it is being loaded, or at its end, is no
    traceback either.
    """
    sys.unraisablehook = _interrupt_again
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(
                errors="backslashreplace"
            )  # a class name may not be in the terminal's letters
    try:
        from minipc.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        os.write(2, b"minipc: interrupted\n")
        sys.exit(130)


def _interrupt_again(lost):
    """Repeat an interruption that fell into a finaliser or a weak reference, where Python drops
    it.
    """
    if lost.exc_type is KeyboardInterrupt:
        with suppress(RuntimeError):  # too late for a thread: the process ends anyway
            threading.Timer(
                0.01, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
            ).start()
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    main()
