"""Networks that are described by a name alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


class WrappedNetwork(NamedNetwork):
    """A network around the model of another package, whose parts are those of the model."""

    knows_half = False
    expanded: tuple[str, ...]  # modules whose children are parts, unless they have parameters beside those

    def __init__(self, name: str, model: nn.Module) -> None:
        """Take over a model; ``name`` is that in the table of networks."""
        super().__init__()
        self.name = name
        self.model: Any = model
        self._parts = self._parts_by_key(model)

    def parts(self) -> list[nn.Module]:
        """Return the stages of the backbone, what joins their maps, and the rest of the model."""
        return list(self._parts.values())

    def parts_that_predict(self) -> list[int]:
        """Return all parts but those of the backbone."""
        return [number for number, part in enumerate(self._parts) if not part.startswith("backbone")]

    def part_of(self, name: str) -> int:
        """As :meth:`DetectionNetwork.part_of`."""
        return next(number for number, part in enumerate(self._parts) if name.startswith(f"model.{part}."))

    def _parts_by_key(self, model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
        """Return the modules that have parameters, by the beginning of their keys, in the order of the model."""
        found: dict[str, nn.Module] = {}
        for name, child in model.named_children():
            if name in self.expanded and not list(child.parameters(recurse=False)):
                found |= self._parts_by_key(child, f"{prefix}{name}.")
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
