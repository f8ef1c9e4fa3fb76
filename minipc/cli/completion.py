"""Values that a shell completes beside choices and file names; imported work waits for the tab."""

from contextlib import suppress

import click

from minipc.errors import MinipcError


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the named models that begin so."""
    from minipc.models.model import MODELS

    names = (name for module in MODELS.values() for name in module.NAMED_SIZES)
    return [name for name in names if name.startswith(incomplete)]


def mutants(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the mutants that begin so, and "all"."""
    from minipc.audit.mutants import MUTANTS

    return [name for name in ("all", *MUTANTS) if name.startswith(incomplete)]


def libraries(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the libraries whose weight can be translated, as NAME=, that begin so."""
    from minipc.audit.conventions import CONVENTIONS

    return [f"{name}=" for name in CONVENTIONS if f"{name}=".startswith(incomplete)]


def classes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the classes that begin so, of the data files named before on the command line."""
    from minipc.data.clouds import read_clouds

    names: dict[str, None] = {}
    for value in context.params.values():
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, str) and path.endswith(".h5"):
                with suppress(MinipcError):  # no data file: nothing to offer
                    names |= dict.fromkeys(read_clouds(path).train.class_names)
    return [name for name in names if name.startswith(incomplete)]
