"""Scans and meshes that lie are read or refused in one line, quickly and in little memory."""

import json
import subprocess
import sys
from pathlib import Path

from reference_tests.faults import hostile_scans

SECONDS, MEMORY = 10, 300 << 20  # of CPU time for one file; bytes for all of them
HANGS = 600  # seconds after which the process that reads them waits for something


def test_whatever_a_scan_claims_it_is_read_or_refused_within_bounds(tmp_path, record_property):
    names = [name for name, data in hostile_scans.corpus() if (tmp_path / name).write_bytes(data)]
    done = subprocess.run(
        [sys.executable, "-m", "reference_tests.faults.hostile_scans", tmp_path],
        capture_output=True,
        text=True,
        timeout=HANGS,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found, memory = told["found"], told["memory"]
    record_property("files", len(found))
    record_property("refused", sum(what == "refused" for what, _ in found.values()))
    record_property("longest_ms", round(1000 * max(seconds for _, seconds in found.values())))
    record_property("megabytes", round(memory / 1e6))
    wrong = {n: what for n, (what, _) in found.items() if what not in ("read", "refused")}
    assert wrong == {} and len(found) >= len(names) > 2000
    bombs = {name for name, _ in hostile_scans.bombs()}
    assert {name for name in bombs if found[name][0] == "read"} == set()
    assert max(seconds for _, seconds in found.values()) < SECONDS and memory < MEMORY
