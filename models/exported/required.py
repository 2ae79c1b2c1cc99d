"""Packages that not everybody needs: those of exported files, and of services that keep the numbers of runs."""

from __future__ import annotations

import importlib
from types import ModuleType

from utils.errors import UserError


def required(package: str, what: str, requirements: str = "requirements-export.txt") -> ModuleType:
    """Import a package.

    Args:
        package: its name.
        what: who needs it, a file or an option; begins the message.
        requirements: the file that lists it.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{what}: needs the package {package}; pip install -r {requirements}") from error
