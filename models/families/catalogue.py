"""``--cfg help``: every network that can be named, with its parameters and what it finds."""

from __future__ import annotations

import torch

from models.families.table import FAMILIES
from models.network import build_network
from utils.config import REPOSITORY
from utils.tables import text_table

ASKED = "help"  # what --cfg says
CLASSES = 80  # that parameters are counted for, in models/families, too


def print_if_asked(cfg: str) -> None:
    """End the program after printing the networks, if that is what ``--cfg`` asks for."""
    if cfg == ASKED:
        print_networks()
        raise SystemExit(0)


def print_networks() -> None:
    """Print the networks of ``cfg/`` and of the table, without allocating their weights."""
    rows = [["--cfg", "parameters", "finds", "from"]]
    with torch.device("meta"):
        for path in sorted((REPOSITORY / "cfg").glob("*.cfg")):
            rows.append([path.name, f"{_count(build_network(path, CLASSES)):,}", "boxes", "cfg/"])
        for name, family in FAMILIES.items():
            count = family.parameters or _count(family.build(CLASSES))
            rows.append([name, f"{count:,}", ", ".join(("boxes", *sorted(family.finds))), family.package])
    print(text_table(rows))
    print(f"Parameters with {CLASSES} classes. Any other Darknet cfg is named by its path.")


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
