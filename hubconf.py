"""The detector by ``torch.hub.load(folder, "detector", source="local", weights="best.pt")``, from any folder."""

import sys
from pathlib import Path

dependencies = ["torch", "numpy", "cv2", "PIL", "yaml", "tqdm"]

_FOLDER = Path(__file__).resolve().parent
_PACKAGES = ("utils", "models", "data", "evaluation", "engine")  # of this folder, that the detector imports


def _refuse_other_packages() -> None:
    """Refuse to start where the program has imported modules of the names of this folder's packages.

    Raises:
        ImportError: Python would take the program's own for ours.
    """
    for name in _PACKAGES:
        module = sys.modules.get(name)
        if module is not None:
            places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
            if not any(place and Path(place).resolve().is_relative_to(_FOLDER / name) for place in places):
                where = next((place for place in places if place), "memory")
                raise ImportError(
                    f"{_FOLDER}: needs its own package '{name}', but this program has imported another '{name}' "
                    f"({where}); use the detector in a process of its own, or rename that module"
                )


_refuse_other_packages()

from models import load as detector  # noqa: E402, F401
