"""Networks that are described by a name alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from models.detection_network import DetectionNetwork

FIRST_LINE = "[detector]"  # of the text that stands for such a network where others have their cfg


class NamedNetwork(DetectionNetwork):
    """A network of the table; with its name and the number of classes it can be built again."""

    name: str

    @property
    def cfg_path(self) -> str:
        """Its name."""
        return self.name

    @property
    def cfg_text(self) -> str:
        """As :meth:`DetectionNetwork.cfg_text`."""
        return f"{FIRST_LINE}\nname={self.name}\n"

    def describe(self, name: str) -> str:
        """As :meth:`DetectionNetwork.describe`: keys of the state dict speak for themselves."""
        return name


def parts_by_key(model: nn.Module, expanded: Sequence[str], prefix: str = "") -> dict[str, nn.Module]:
    """Return the modules that have parameters, by the beginning of their keys, in the order of the model.

    Args:
        model: whose parts are wanted.
        expanded: names of modules whose children are parts of their own.
        prefix: of the keys.
    """
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if name in expanded:
            found |= parts_by_key(child, expanded, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            found[prefix + name] = child
    return found


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Within this block batch norms use their running statistics."""
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d) and one.training]
    try:
        for norm in norms:
            norm.eval()
        yield
    finally:
        for norm in norms:
            norm.train()
