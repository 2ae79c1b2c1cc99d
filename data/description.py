"""What a data set consists of, as a user's file or folder says it; nothing but names and paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from utils.config import REPOSITORY, command_from_here
from utils.errors import UserError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class DataDescription:
    """Where the images and labels of each split are, and the classes; their files have not been opened yet."""

    path: Path  # the file that says it, or the folder, image list or COCO JSON that stands in for one
    num_classes: int  # 0: as the labels say
    names: tuple[str, ...]  # empty: as the labels say
    splits: dict[str, tuple[str, ...]]  # "train", "valid", "test" -> lists, folders or one JSON, as written
    image_folders: dict[str, str] = field(default_factory=dict)  # split -> explicit image folder of a COCO JSON
    download: str = ""  # the command that fetches the data; it is shown, never run
    draw: str = ""  # the built-in set that is drawn on first use
    roots: tuple[Path, ...] = ()  # folders to which paths may be relative; empty: see `find`
    notes: tuple[str, ...] = ()  # for the user, a line each
    is_one_set: bool = False  # the same images serve as all splits
    keypoint_shape: tuple[int, int] | None = None  # of YOLO pose rows: points, numbers of each; (0, 0): there are none
    keypoint_mirror: tuple[int, ...] = ()  # the point that takes the place of each in a mirror; (): not said
    val_fraction: float = 0.0  # the share of the training images that is held out as "valid"

    def find(self, text: str) -> Path | None:
        """Return the existing file or folder that a path names, or None.

        It is looked for in the roots: by default the working directory, the folder of the file, the repository. Where
        it is in none of them, leading folders are left out, one after the other, beside the file: annotation tools
        write paths of their own machines.
        """
        if "\0" in text:
            return None
        for spelling in dict.fromkeys((text, text.replace("\\", "/"))):
            for root in self.all_roots:
                path = root / os.path.expanduser(spelling)  # of an unknown user, unlike Path's, it is no error
                if _exists(path):
                    return path
        shorter = (root / end for end in ends_of(text) for root in dict.fromkeys((self.folder, *self.all_roots)))
        return next((path for path in shorter if _exists(path)), None)

    @property
    def all_roots(self) -> tuple[Path, ...]:
        """The folders to which paths may be relative."""
        return self.roots or (Path(), self.folder, REPOSITORY)

    @property
    def folder(self) -> Path:
        """The folder to which the file's relative paths may be relative."""
        return self.path if self.path.is_dir() else self.path.parent

    def sources(self, split: str) -> tuple[Path, ...]:
        """Return the existing lists, folders or JSON of a split; of the training images where it is held out of them.

        Raises:
            UserError: there is no such split, or it is not on the disk; says how to get it.
        """
        if self.val_fraction and split == "valid":
            split = "train"
        if split not in self.splits:
            has = ", ".join(self.splits) or "no split at all"
            remedy = "; name another split"
            if split == "valid" and "train" in self.splits:
                remedy = "; --val-fraction 0.2 holds a fifth of its training images out, or name the images there"
            raise UserError(f"{self.path}: has no '{split}' (it has {has}){remedy}")
        return tuple(self._existing(split, text) for text in self.splits[split])

    def _existing(self, split: str, text: str) -> Path:
        found = self.find(text)
        if found is None:
            fetch = f"; fetch it with: {command_from_here(self.download)}"
            remedy = fetch if self.download else f"; correct '{split}' in {self.path}"
            looked = ", ".join(dict.fromkeys(str(root.absolute()) for root in self.all_roots))
            raise UserError(f"{self.path}: {split} = {text:.300} is not on the disk (looked in {looked}){remedy}")
        return found

    def image_folder(self, split: str) -> Path | None:
        """Return the folder that ``<split>_images`` names, or None where the file does not say."""
        text = self.image_folders.get(split)
        if text is None:
            return None
        found = self.find(text)
        if found is None:
            raise UserError(f"{self.path}: {split}_images = {text} does not exist")
        return found

    def found_elsewhere(self, split: str) -> list[str]:
        """Return a line for each path of a split that was found only after folders of it had been left out."""
        split = "train" if self.val_fraction and split == "valid" else split
        pairs = zip(self.splits[split], self.sources(split), strict=True)
        return [
            f"{text} is read from {path}"
            for text, path in pairs
            if not path.as_posix().endswith(text.replace("\\", "/").removeprefix("~").lstrip("./"))
        ]

    def holding_out(self, val_fraction: float) -> DataDescription:
        """Return the description where a share of the training images is the split "valid"; 0: the same description.

        Raises:
            UserError: it has a split "valid" of its own, or no training images.
        """
        if not val_fraction:
            return self
        if not 0 < val_fraction < 1:
            raise UserError(f"--val-fraction {val_fraction:g}: must be a share of the training images, such as 0.2")
        if "train" not in self.splits:
            raise UserError(f"{self.path}: has no 'train' from which --val-fraction could hold images out")
        if "valid" in self.splits and not self.is_one_set:
            raise UserError(f"{self.path}: has images for validation ('valid'); leave --val-fraction out")
        return replace(self, val_fraction=val_fraction, is_one_set=False)


def ends_of(text: str) -> Iterator[str]:
    """Yield a path with its first folder left out, then its first two, and so on down to the bare name."""
    parts = PurePosixPath(text.replace("\\", "/")).parts
    for start in range(1, len(parts)):
        if ".." not in parts[start:]:
            yield "/".join(parts[start:])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for the file system
        return False
