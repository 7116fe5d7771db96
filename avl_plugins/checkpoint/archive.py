"""The file: plain values with a checksum, written whole or not at all, and read without trust."""

import hashlib
import os
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from avl_plugins._atomic import write_atomically
from avl_plugins.checkpoint.plain import KIND

__all__ = ["digest", "read", "write"]

_FORMAT = "avl_plugins checkpoint 1"
_GLOBALS = {
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "collections OrderedDict"),
    *("torch.storage UntypedStorage", "__builtin__ complex", "builtins complex"),
}


def write(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a state beside `path` and rename it: a kill at any moment leaves the old file or the new one."""
    content = {"format": _FORMAT, "sha256": digest(state), "state": state}
    write_atomically(path, lambda file: torch.save(content, file))


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state in a file. Nothing in it is executed, and it takes no more memory than the file's size.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is truncated, damaged, changed since, or no checkpoint.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"path must be a regular file, got the device or pipe {path}")
    with path.open("rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            _check_archive(file, size)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            known = isinstance(content, dict) and content.get("format") == _FORMAT
            if known:
                _check_extent(content, size)
            intact = known and content.get("sha256") == digest(content.get("state"))
        except Exception as error:
            reason = str(error) if type(error) is ValueError else type(error).__name__
            raise ValueError(
                f"path: {path} is truncated, damaged or not a checkpoint of this package; nothing in it was executed "
                f"({reason})"
            ) from error
    if not known:
        found = content.get("format") if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"path: {path} is not a checkpoint of this package: expected {_FORMAT!r}, found {found!r}")
    if not intact:
        raise ValueError(f"path: {path} has been changed since it was written; its checksum differs")
    return content["state"]


def _check_archive(file: BinaryIO, size: int) -> None:
    """Refuse an archive that unpacks to more than its size, or that names something to call but tensors.

    Torch's unpickler calls what is harmless: it builds a bytearray of any length, for example.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
            raise ValueError("it unpacks to more than its size")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                for opcode, argument, _ in pickletools.genops(archive.read(entry)):
                    if opcode.name == "GLOBAL" and not _is_expected(str(argument)):
                        raise ValueError(f"it names {argument}")


def _is_expected(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    is_dtype = attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype)
    return name in _GLOBALS or (module == "torch" and is_dtype)


def _check_extent(content: Any, size: int) -> None:
    """Refuse values that take more memory than the file: a tensor of any shape can stand on a single number."""
    waiting, extent = [content], 0
    while waiting:
        value = waiting.pop()
        extent += 1
        if isinstance(value, Tensor):
            if not value.is_contiguous():
                raise ValueError(f"a tensor of shape {tuple(value.shape)} has strides {value.stride()}")
            extent += value.nbytes
        elif isinstance(value, dict):
            waiting.extend(value.values())
            if value.get(KIND) == "png" and isinstance(value["value"], Tensor):
                extent -= value["value"].nbytes * 3 // 4  # the latest pictures are in the history, too
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        if extent > size:
            raise ValueError("its values take more memory than the file")


def digest(state: Any) -> str:
    """SHA-256 of a tree of plain values: structure, numbers to the last bit, and tensors with dtype and shape."""
    checksum = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            checksum.update(f"{value.dtype}{tuple(value.shape)}".encode())
            checksum.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            checksum.update(f"dict {len(value)}".encode())
            for key, item in value.items():
                add(key)
                add(item)
        elif isinstance(value, (list, tuple)):
            checksum.update(f"{type(value).__name__} {len(value)}".encode())
            for item in value:
                add(item)
        else:
            checksum.update(f"{type(value).__name__} {value!r};".encode())

    add(state)
    return checksum.hexdigest()
