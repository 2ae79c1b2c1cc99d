"""``--weights-backbone``: the weights of a classifier alone, as torchvision and timm publish them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from models.checkpoints.load import find_weights
from models.checkpoints.safetensors_file import has_safetensors, read_tensors
from models.checkpoints.state_dict_file import read_state_dict
from models.checkpoints.tensor_checks import why_unfit
from models.detection_network import DetectionNetwork
from utils.errors import UserError


def load_backbone(network: DetectionNetwork, weights: str | Path) -> str:
    """Fill the backbone of a network from a classifier's weights, and nothing else; on an error it is unchanged.

    Args:
        network: one that is named instead of having a cfg.
        weights: the file, looked up as given, then in ``weights/``.

    Returns:
        One line that says what was taken.

    Raises:
        UserError: no such file, of another backbone, or damaged; the network has a cfg.
    """
    source = network.backbone_source
    if source is None:
        raise UserError(
            f"--weights-backbone: {network.cfg_path} takes its first layers from Darknet weights that end there: "
            "--weights darknet53.conv.74"
        )
    path = find_weights(weights)
    state, wanted = _read(path), network.state_dict()
    other = f"{path}: the weights of another backbone than {network.cfg_path}'s, which is {source.classifier}"
    filled, taken = dict(wanted), set()
    for name, tensor in wanted.items():
        key = source.key_in_file(name)
        if key is None or (key not in state and key.endswith("num_batches_tracked")):  # which older files lack
            continue
        if key not in state or state[key].shape != tensor.shape:
            raise UserError(f"{other}; {key} {'has another shape' if key in state else 'is missing'}")
        if problem := why_unfit(network, name, state[key], tensor):
            raise UserError(f"{path}: damaged, {key} {problem}; use another copy")
        filled[name] = state[key]
        taken.add(key)
    surplus = [key for key in state if key not in taken and not key.startswith(source.left_out)]
    if surplus:
        raise UserError(f"{other}; there is no place for {surplus[0]}")
    network.load_state_dict(filled)
    return (
        f"{path}: {len(taken)} of its {len(state)} tensors taken as the backbone ({source.classifier}) of "
        f"{network.cfg_path}; everything else starts fresh"
    )


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that holds nothing else.

    Raises:
        UserError: it is none.
    """
    state = read_tensors(path)[0] if has_safetensors(path) else read_state_dict(path)
    if state is None:
        raise UserError(
            f"{path}: --weights-backbone takes the tensors of a classifier, as torchvision and timm publish them; "
            "this is something else, or cut off"
        )
    return state
