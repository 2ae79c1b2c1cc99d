"""Packages that only exporting and exported files need."""

from __future__ import annotations

import importlib
from types import ModuleType

from utils.errors import UserError


def required(package: str, what: str) -> ModuleType:
    """Import a package.

    Args:
        package: its name.
        what: who needs it, a file or an option; begins the message.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{what}: needs the package {package}; pip install -r requirements-export.txt") from error
