"""Versions of what is installed, without importing any of it."""

from importlib.metadata import PackageNotFoundError, version

CUPY = ("cupy-cuda12x", "cupy-cuda13x", "cupy")  # distributions of the module cupy


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def cupy_distributions() -> dict[str, str]:
    """Return {name: version} of the packages that provide cupy; two of them break each other."""
    return {name: number for name in CUPY if (number := version_of(name))}
