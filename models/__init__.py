"""Images to predictions, and what training needs of them; ``from models import load`` for a Python program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.predictor import load as load


def __getattr__(name: str) -> Any:
    """Return ``load``, which lies above this package: imported only for the program that asks for it (PEP 562)."""
    if name == "load":
        from engine.predictor import load

        return load
    raise AttributeError(f"module 'models' has no attribute '{name}'")
