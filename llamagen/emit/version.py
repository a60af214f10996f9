"""The version that files say they were written by."""

from importlib.metadata import PackageNotFoundError, version


def llamagen_version() -> str:
    """Version of the installed package; ``0`` in a checkout that is not installed."""
    try:
        return version("llamagen")
    except PackageNotFoundError:
        return "0"
