"""Fetch COCO 2017: ``python data/download_coco.py``.

An interrupted transfer goes on where it stopped (also in another run), every archive's MD5 is checked before it is
unpacked, and a folder appears only when it is complete. What is there already is not fetched again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path, from any folder: the packages are in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import UserError, run_command  # first: for Ctrl-C during the imports below

# isort: split
import hashlib
import http.client
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from utils.config import REPOSITORY, option, parse_options

CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 8  # failures in a row without a new byte before giving up


@dataclass(frozen=True)
class Archive:
    """One zip file and what it turns into."""

    url: str
    size: int  # bytes
    md5: str
    member: str  # the folder inside the archive
    folder: str  # where that folder goes, below the data set's root


ANNOTATIONS = Archive(
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    252_907_541,
    "f4bbac642086de4f52a3fdda2de5fa2c",
    "annotations",
    "annotations",
)
IMAGES = {
    "val2017": Archive(
        "http://images.cocodataset.org/zips/val2017.zip",
        815_585_330,
        "442b8da7639aecaf257c1dceb8ba8c80",
        "val2017",
        "images/val2017",
    ),
    "train2017": Archive(
        "http://images.cocodataset.org/zips/train2017.zip",
        19_336_861_798,
        "cced6f7f71b7629ddf16f17bbcfab6b2",
        "train2017",
        "images/train2017",
    ),
}


@dataclass(frozen=True)
class DownloadOptions:
    """What to fetch and where to put it."""

    folder: str = option(str(REPOSITORY / "datasets" / "coco"), "root of the data set")
    images: tuple[str, ...] = option(("val2017", "train2017"), "image sets to fetch", choices=tuple(IMAGES))
    annotations_only: bool = option(False, "fetch no images: enough for the statistics and the anchors")
    keep_zips: bool = option(False, "keep the archives after unpacking")


def fetch(archives: Sequence[Archive], root: Path, keep_zips: bool = False, pause: float = 2.0) -> None:
    """Fetch, check and unpack the archives whose folder is not there yet.

    Args:
        archives: what to fetch, in order.
        root: the data set's folder.
        keep_zips: keep the archives.
        pause: seconds before the first new attempt; doubled for each further one, up to a minute.

    Raises:
        UserError: no connection, a wrong checksum, no space.
    """
    missing = [archive for archive in archives if not (root / archive.folder).is_dir()]
    for archive in archives:
        print(f"{root / archive.folder}: {'to be fetched' if archive in missing else 'is there'}")
    root.mkdir(parents=True, exist_ok=True)
    _require_space(missing, root)
    for archive in missing:
        zip_path = root / archive.url.rsplit("/", 1)[-1]
        download(archive, zip_path, pause)
        unpack(archive, zip_path, root)
        if not keep_zips:
            zip_path.unlink()


def download(archive: Archive, path: Path, pause: float = 2.0) -> None:
    """Fetch one file into ``path``; ``<path>.part`` holds what has arrived so far.

    Raises:
        UserError: the server refuses, the connection breaks again and again, or the checksum is wrong.
    """
    if not path.exists():
        part = path.with_name(path.name + ".part")
        failures = 0
        with tqdm(total=archive.size, unit="B", unit_scale=True, desc=path.name) as progress:
            while (before := _size(part)) < archive.size:
                try:
                    _transfer(archive, part, progress)
                except (OSError, http.client.HTTPException) as error:
                    if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code != 416:
                        raise UserError(f"{archive.url}: the server answers {error.code} {error.reason}") from error
                    if isinstance(getattr(error, "reason", None), socket.gaierror):
                        raise UserError(f"{archive.url}: the host is not known; is there a connection?") from error
                    failures = 1 if _size(part) > before else failures + 1
                    if failures >= ATTEMPTS:
                        raise UserError(f"{archive.url}: {_reason(error)}; run the command again to go on") from error
                    time.sleep(min(pause * 2 ** (failures - 1), 60))
        try:
            _check(archive, part)
        except UserError:
            part.unlink()  # going on with it would not repair it
            raise
        os.replace(part, path)
    else:
        _check(archive, path)


def _transfer(archive: Archive, part: Path, progress: tqdm) -> None:
    """Append to the partial file what it lacks; start over where the server cannot continue.

    Raises:
        OSError, HTTPException: the connection failed or ended early.
    """
    start = _size(part)
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        continues = response.status == 206 and _range_start(response) == start
        progress.reset(archive.size)
        progress.update(start if continues else 0)
        with open(part, "ab" if continues else "wb") as file:
            while block := response.read(CHUNK):
                file.write(block)
                progress.update(len(block))
    if _size(part) < archive.size:
        raise http.client.IncompleteRead(b"", archive.size - _size(part))


def _range_start(response: http.client.HTTPResponse) -> int:
    """Return the first byte of a partial answer, -1 where it does not say."""
    text = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0].strip()
    return int(text) if text.isdecimal() else -1


def _check(archive: Archive, path: Path) -> None:
    """Compare size and MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    if _size(path) != archive.size or digest.hexdigest() != archive.md5:
        found = f"{_size(path)} bytes with MD5 {digest.hexdigest()}"
        wanted = f"{archive.size} bytes with {archive.md5}"
        raise UserError(
            f"{path}: is not {archive.url} ({found}; expected {wanted}); remove it and run the command again"
        )


def unpack(archive: Archive, zip_path: Path, root: Path) -> None:
    """Unpack into a temporary folder, then give the wanted folder its name.

    Raises:
        UserError: not a zip file, a member that would leave the folder, or no such folder inside.
    """
    target = root / archive.folder
    temporary = root / f".{zip_path.stem}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was interrupted here
    try:
        with zipfile.ZipFile(zip_path) as file:
            for member in tqdm(file.infolist(), unit="file", desc=f"unpacking {zip_path.name}"):
                if os.path.isabs(member.filename) or ".." in Path(member.filename).parts:
                    raise UserError(f"{zip_path}: the member '{member.filename}' would leave the folder")
                file.extract(member, temporary)
        if not (temporary / archive.member).is_dir():
            raise UserError(f"{zip_path}: has no folder '{archive.member}'")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / archive.member, target)
    except zipfile.BadZipFile as error:
        raise UserError(f"{zip_path}: not a zip file ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _require_space(archives: Sequence[Archive], root: Path) -> None:
    """Refuse to begin what cannot end: each archive and its content are on the disk at once."""
    needed = sum(archive.size for archive in archives) + max((archive.size for archive in archives), default=0)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise UserError(f"{root}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def main() -> None:
    """Fetch what the options ask for."""
    (options,) = parse_options("Fetch the COCO 2017 data set.", DownloadOptions)
    wanted = [ANNOTATIONS] if options.annotations_only else [ANNOTATIONS, *(IMAGES[name] for name in options.images)]
    fetch(wanted, Path(os.path.expanduser(options.folder)), options.keep_zips)
    print("done; cfg/coco2017.data finds it when it lies in datasets/coco")


if __name__ == "__main__":
    run_command(main)
