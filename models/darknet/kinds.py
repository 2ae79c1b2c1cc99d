"""The table of section kinds. A new kind is one file with its :class:`SectionKind`, and its line here."""

from __future__ import annotations

from models.darknet import gaussian_yolo, joins, recurrent, region, sections, vectors
from models.darknet.kind import SectionKind

KINDS: dict[str, SectionKind] = {
    kind.name: kind
    for kind in (
        *sections.KINDS,
        *joins.KINDS,
        region.KIND,
        gaussian_yolo.KIND,
        *vectors.KINDS,
        *recurrent.KINDS,
    )
}
