"""The peak of memory while something runs: resident, or what Python and NumPy ask for.

getrusage does not serve: its peak is inherited from the parent process.
"""

import tracemalloc


def _status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def peak_of(function):
    """Return by how many bytes resident memory peaked above its start in function()."""
    before = _status("VmRSS:")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    function()
    return _status("VmHWM:") - before


def new_memory_of(function):
    """Return how many bytes of new memory function() held at its peak, as tracemalloc sees them."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        function()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before
