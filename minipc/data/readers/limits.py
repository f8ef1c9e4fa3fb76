"""Another process for what strangers' files may do to it, and the limits that it puts on itself."""

import os
import sys
from collections.abc import Callable

MEMORY = 256 << 20  # bytes beyond those of the imports; pieces of 16 MiB need a part of it


def available() -> bool:
    """Return whether this system can limit the memory and time of a process."""
    try:
        import resource  # noqa: F401
    except ImportError:  # Windows
        return False
    # elsewhere the limit of memory is not kept, or the memory in use is not told
    return sys.platform == "linux" and bool(sys.executable)


def command(module: str, *words: str) -> list[str]:
    """Return the command that runs child() of a module of minipc, with words in sys.argv[1:]."""
    root = os.path.dirname(__file__)
    for _ in range(3):  # the folder that holds minipc
        root = os.path.dirname(root)
    code = f"import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import child; child()"
    # -P: modules in the current folder are not ours
    return [sys.executable, "-P", "-c", code, root, *words]


def limit(seconds: int) -> Callable[[], None]:
    """Limit this process to seconds of computing and to MEMORY, both beyond what it has used.

    Only where available().  Returns a function that lifts the limit of memory, to tell that it was
    reached.
    """
    import resource

    with open("/proc/self/statm") as file:
        memory = int(file.read().split()[0]) * resource.getpagesize()
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    for what, most in (
        (resource.RLIMIT_AS, memory + MEMORY),
        (resource.RLIMIT_CPU, int(used) + 1 + seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(what, (most, hard))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
