"""python -m minipc: the command line."""

from minipc.cli.main import main

if __name__ == "__main__":
    main()
