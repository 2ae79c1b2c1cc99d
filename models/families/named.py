"""Networks that are described by a name alone."""

from __future__ import annotations

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
