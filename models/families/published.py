"""Files that packages publish for their detectors: tensors alone, whose classes are COCO's slots, unused ones too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from models.exported.required import required
from models.families.named import WrappedNetwork
from utils.errors import UserError


@dataclass(frozen=True)
class PublishedDetector(ABC):
    """A package's detector, for which it publishes files of weights."""

    parameters: int  # with 80 classes
    has_background: bool = field(default=False, kw_only=True)  # the model's class 0 is none of the network's
    # Its own rule as a strategy of --match, which others can take the place of; "": none can.
    match: str = field(default="", kw_only=True)
    finds: frozenset[str] = field(default=frozenset(), kw_only=True)  # besides boxes

    @property
    def first_slot(self) -> int:
        """COCO's number of the network's first class in such a file."""
        return int(self.has_background)

    @abstractmethod
    def build(self, name: str, num_classes: int) -> WrappedNetwork:
        """Return the network with random weights.

        Args:
            name: in the table of networks.
            num_classes: that it is to tell apart.

        Raises:
            UserError: the package cannot be imported.
        """

    def filled(self, name: str, state: Mapping[str, Tensor], path: Path) -> WrappedNetwork:
        """Return the network with the tensors of a published file, and as many classes as that has.

        The package itself reads names of its older releases.

        Raises:
            UserError: they are the tensors of another network.
        """
        other = f"{path}: the weights of another network than {name}"
        key, rows = next(iter(self.rows_per_class(name).items()))
        if key not in state or not state[key].dim():
            raise UserError(f"{other}, which has {key}; a backbone alone goes to train.py --weights-backbone")
        network = self.build(name, max(1, len(state[key]) // rows - int(self.has_background)))
        try:
            missing, surplus = network.model.load_state_dict(dict(state), strict=False)
        except RuntimeError as error:
            raise UserError(f"{other}; tensors of other shapes") from error
        # Batch norms that were frozen when the file was written have counted nothing.
        wrong = [one for one in missing if not one.endswith("num_batches_tracked")] + surplus
        if wrong:
            raise UserError(f"{other}, for one of them lacks {wrong[0]}")
        return network

    def rows_per_class(self, name: str) -> dict[str, int]:
        """Return the tensors of the model whose first dimension grows with the classes, and by how much for each."""
        with torch.device("meta"):
            one, two = (self.build(name, count).model.state_dict() for count in (1, 2))
        rows = {key: len(two[key]) - len(tensor) if tensor.dim() else 0 for key, tensor in one.items()}
        return {key: count for key, count in rows.items() if count}

    def names(self, name: str, num_classes: int) -> tuple[str, ...]:
        """Return the names of the classes of a published file: COCO's where it has all its slots, else nothing."""
        coco = required("torchvision.models._meta", name, "requirements.txt")._COCO_CATEGORIES
        if num_classes != len(coco) - self.first_slot:
            return ()
        return tuple(
            f"unused {slot}" if coco[slot] == "N/A" else coco[slot] for slot in range(self.first_slot, len(coco))
        )
