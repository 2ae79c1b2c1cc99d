"""Figures of matplotlib that need no screen and no global state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**settings: Any) -> Figure:
    """Return an empty figure; a dollar sign in a name is shown as it is, not read as mathematics."""
    import matplotlib  # takes half a second, and most commands draw nothing
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False
    return Figure(**settings)
