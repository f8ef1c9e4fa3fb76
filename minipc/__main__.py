"""python -m minipc, and the command minipc: the command line."""

import os
import sys


def main():
    """Run the command line; an interruption while it is being loaded, or at its end, is no traceback either."""
    try:
        from minipc.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        os.write(2, b"minipc: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
