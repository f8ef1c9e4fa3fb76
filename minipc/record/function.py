"""A teacher of one's own, named in a command: path/to/file.py:function, or package.module:function.

The function takes no arguments and returns the teacher.  It is imported and called where it is
needed, so a process that shares a recording makes its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from minipc.errors import DataError, MinipcError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any


def is_function(text: str) -> bool:
    """Return whether text names a function: no file of that name, and an identifier behind ":"."""
    source, colon, name = os.fspath(text).rpartition(":")
    return bool(colon and source) and name.isidentifier() and not os.path.exists(text)


def call_function(text: str) -> Any:
    """Return what the function returns that text names; beside it, its folder can be imported.

    Raises UsageError where it cannot be found or imported, DataError where it raises.  An error of
    minipc passes as it is.
    """
    source, _, name = text.rpartition(":")
    is_file = source.endswith(".py")
    folder = os.path.dirname(os.path.abspath(source)) if is_file else os.getcwd()
    with _importing(folder, fresh=is_file):
        module = _module(source, is_file)
        function = getattr(module, name, None)
        if not callable(function):
            found = "nothing" if function is None else type(function).__name__
            raise UsageError(
                f"{text}: expected a function {name} without arguments, found {found} of that "
                "name; write one that returns the teacher"
            )
        try:
            return function()
        except MinipcError:
            raise
        except (Exception, SystemExit) as reason:
            raise DataError(f"{text}: {raised(reason)}; run it alone to see where") from reason


def named_teacher(text: str) -> Callable[..., Any]:
    """Return the teacher that a named function returns; what it raises becomes DataError.

    Its attributes teacher_id and made_with stay (contract.py).  Raises as call_function, and
    DataError for what cannot be called.
    """
    teacher = call_function(text)
    if not callable(teacher):
        raise DataError(
            f"{text}: returned {type(teacher).__name__}, which cannot be called; return a teacher, "
            "from points (B, P, 3) float32 to logits (B, K)"
        )

    def logits_of(points: Any) -> Any:
        try:
            return teacher(points)
        except MinipcError:
            raise
        except Exception as reason:
            raise DataError(
                f"{text}: its teacher {raised(reason)}; it is called with points (B, P, 3) float32 "
                "of NumPy (for a PyTorch module return minipc.torch.teacher.ModuleTeacher(module))"
            ) from reason

    for attribute in ("teacher_id", "made_with"):
        if hasattr(teacher, attribute):
            setattr(logits_of, attribute, getattr(teacher, attribute))
    return logits_of


def raised(reason: BaseException) -> str:
    """Return an exception as a part of one line."""
    said = " ".join(str(reason).split()).rstrip(".")
    return f"raised {type(reason).__name__}" + (f" ({said})" if said else "")


def _module(source: str, is_file: bool) -> ModuleType:
    """Return the imported module.  Raises UsageError."""
    if is_file and not os.path.isfile(source):
        raise UsageError(f"{source}: no such file; expected path/to/file.py:function")
    try:
        if not is_file:
            return importlib.import_module(source)
        # a name of its own: a file json.py does not become json for all others
        name = f"teacher_in_{os.path.basename(source).removesuffix('.py')}"
        spec = importlib.util.spec_from_file_location(name, os.path.abspath(source))
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[name] = module  # dataclasses and pickle look for it there
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        return module
    except MinipcError:
        raise
    except (Exception, SystemExit) as reason:
        raise UsageError(
            f"{source}: cannot be imported: {raised(reason)}; expected path/to/file.py:function or "
            "package.module:function"
        ) from reason


@contextmanager
def _importing(folder: str, fresh: bool) -> Iterator[None]:
    """Let imports find the modules of a folder inside this block.

    fresh: and none that an earlier teacher, of this folder or another, imported from beside it.
    """
    marked = "imported_beside_a_teacher"
    for name, module in list(sys.modules.items()):
        if fresh and marked in _own(module):
            del sys.modules[name]
    known = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
        for name in sys.modules.keys() - known if fresh else ():
            top = _own(sys.modules.get(name.partition(".")[0]))
            where = os.path.dirname(os.path.abspath(top.get("__file__") or os.sep))
            if folder in (where, os.path.dirname(where)):
                _own(sys.modules[name])[marked] = True


def _own(module: Any) -> dict[str, Any]:
    """Return the names of a module; asked by getattr, one of others may import, warn or raise."""
    with suppress(AttributeError):
        return object.__getattribute__(module, "__dict__")
    return {}
