"""A teacher that a command names by its file: it and what lies beside it, fresh each time."""

import importlib.util
import os
import pickle
import sys
import types

import pytest

from minipc.record.function import call_function


@pytest.fixture
def two(tmp_path):
    """Folders a and b with a file each, of one name, that imports what lies beside it."""
    for name in ("a", "b"):
        (tmp_path / name / "parts").mkdir(parents=True)
        (tmp_path / name / "again.py").write_text(
            "import json\nfrom beside import kind, Kind\nfrom parts import more\n"
            "def teacher():\n    return kind, more.kind, Kind()\n"
        )
        (tmp_path / name / "beside.py").write_text(f"kind = {name!r}\nclass Kind: pass\n")
        (tmp_path / name / "parts" / "__init__.py").write_text("")
        (tmp_path / name / "parts" / "more.py").write_text(f"kind = {name!r}\n")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_each_teacher_imports_what_lies_beside_it_not_beside_another(two):
    for name in ("a", "b", "a"):
        kind, more, one = call_function(f"{two / name / 'again.py'}:teacher")
        assert (kind, more) == (name, name)
        assert type(pickle.loads(pickle.dumps(one))) is type(one)  # as for a process


def test_what_changed_beside_a_teacher_is_read_again(two):
    text = f"{two / 'a' / 'again.py'}:teacher"
    assert call_function(text)[0] == "a"
    (two / "a" / "beside.py").write_text("kind = 'changed'\nclass Kind: pass\n")
    os.utime(two / "a" / "beside.py", (1, 1))  # another time than that of the compiled file
    assert call_function(text)[0] == "changed"


def test_modules_of_others_stay(two):
    import json

    call_function(f"{two / 'a' / 'again.py'}:teacher")
    call_function(f"{two / 'b' / 'again.py'}:teacher")
    assert sys.modules["json"] is json and str(two / "b") not in sys.path


def test_modules_of_others_are_asked_for_nothing(two, monkeypatch):
    # one whose __getattr__ warns of its own deprecation made a teacher's import fail
    strange = types.ModuleType("strange")
    asked = []
    strange.__getattr__ = asked.append
    monkeypatch.setitem(sys.modules, "strange", strange)
    monkeypatch.setitem(sys.modules, "no_module", None)  # may not be imported
    (two / "lazy.py").write_text("raise AssertionError('it is not needed yet')")
    spec = importlib.util.spec_from_file_location("lazy", two / "lazy.py")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    monkeypatch.setitem(sys.modules, "lazy", lazy := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(lazy)  # at the first name that it is asked for
    (two / "a" / "strange.py").write_text("raise AssertionError('there is one already')\n")
    (two / "a" / "again.py").write_text("import strange\ndef teacher():\n    return 'a'\n")
    assert call_function(f"{two / 'a' / 'again.py'}:teacher") == "a"
    assert call_function(f"{two / 'a' / 'again.py'}:teacher") == "a"
    assert not asked
