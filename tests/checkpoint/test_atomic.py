"""Files are written whole or not at all, whoever else writes, reads or plants something there."""

import os
import secrets
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from avl_plugins import _atomic
from avl_plugins._atomic import check_writable, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def pipe(path):
    os.mkfifo(path)


def bound_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("content", [b"", b"new", lambda file: file.write(b"new")])
@pytest.mark.parametrize("old", [None, b"an older and longer one"])
def test_content_replaces_what_was_there(tmp_path, old, content):
    path = tmp_path / "a" / "b" / "run.pt"
    if old is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(old)
    write_atomically(path, content)
    write_atomically(str(path), content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else b"new")
    assert names(path.parent) == ["run.pt"]


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o666, 0o444, 0o755, 0o000])
def test_permissions_are_kept(tmp_path, permissions):
    path = tmp_path / "run.pt"
    path.write_bytes(b"old")
    path.chmod(permissions)
    write_atomically(path, b"new")
    assert mode(path) == permissions


@pytest.mark.parametrize(("umask", "permissions"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_new_file_has_the_permissions_of_the_umask(tmp_path, umask, permissions):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "run.pt", b"new")
    finally:
        os.umask(before)
    assert mode(tmp_path / "run.pt") == permissions


@pytest.mark.parametrize("old", [b"old", None])
def test_the_target_of_links_is_written(tmp_path, old):
    (tmp_path / "elsewhere").mkdir()
    target, link, second = tmp_path / "elsewhere" / "real.pt", tmp_path / "run.pt", tmp_path / "second.pt"
    if old is not None:
        target.write_bytes(old)
    link.symlink_to("elsewhere/real.pt")
    second.symlink_to(link)
    write_atomically(second, b"new")
    assert link.is_symlink()
    assert second.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "elsewhere") == ["real.pt"]


@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "folder"), (pipe, "pipe"), (bound_socket, "socket")])
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("call", [lambda path: write_atomically(path, b"new"), check_writable])
def test_what_is_no_regular_file_is_refused(tmp_path, monkeypatch, make, kind, linked, call):
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    make("thing")
    if linked:
        os.symlink("thing", "link")
    with pytest.raises(ValueError, match=f"path must be a regular file or a new one, got the {kind} "):
        call("link" if linked else "thing")
    assert names(tmp_path) == ["link", "thing"] if linked else ["thing"]


def test_a_device_is_refused():
    with pytest.raises(ValueError, match="got the device '/dev/null'"):
        write_atomically("/dev/null", b"new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("planted", ["link", "file"])
def test_what_is_planted_under_the_temporary_name_is_left_alone(tmp_path, monkeypatch, planted):
    """Even under the name itself, which cannot be known."""
    monkeypatch.setattr(secrets, "token_hex", lambda number: "0" * 2 * number)
    path, victim = tmp_path / "run.pt", tmp_path / "victim"
    path.write_bytes(b"old")
    victim.write_bytes(b"precious")
    trap = tmp_path / f".run.pt.{'0' * 16}.tmp"
    trap.symlink_to(victim) if planted == "link" else trap.write_bytes(b"planted")
    with pytest.raises(FileExistsError):
        write_atomically(path, b"new")
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == b"old"
    assert trap.is_symlink() == (planted == "link")
    assert trap.read_bytes() == (b"precious" if planted == "link" else b"planted")


def test_names_are_fresh(tmp_path, monkeypatch):
    used, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (used.append(os.path.basename(a)), replace(a, b)))
    for _ in range(20):
        write_atomically(tmp_path / "run.pt", b"new")
    assert len(set(used)) == 20
    assert {len(name) for name in used} == {len(".run.pt.") + 16 + len(".tmp")}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["content", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, place, error):
    def fail(*args):
        raise error("no space left on device")

    path = tmp_path / "run.pt"
    path.write_bytes(b"old")
    if place != "content":
        monkeypatch.setattr(os, place, fail)
    with pytest.raises(error, match="no space left"):
        write_atomically(path, fail if place == "content" else b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["run.pt"]


def test_content_of_a_wrong_kind_changes_nothing(tmp_path):
    (tmp_path / "run.pt").write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "run.pt", "text")
    assert names(tmp_path) == ["run.pt"]


def test_many_writers_and_a_reader(tmp_path):
    """Each read finds one writer's content, whole."""
    path, size, stop, failures = tmp_path / "run.pt", 300_000, threading.Event(), []
    write_atomically(path, b"0" * size)

    def write(letter):
        for _ in range(40):
            write_atomically(path, lambda file: [file.write(letter * (size // 10)) for _ in range(10)])

    def read():
        while not stop.is_set():
            content = path.read_bytes()
            if len(content) != size or len(set(content)) != 1:
                failures.append(content[:10])

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert failures == []
    assert names(tmp_path) == ["run.pt"]


def test_what_kills_have_left_is_removed_in_time(tmp_path):
    long_ago = time.time() - _atomic._ABANDONED_AFTER - 60
    for name in (".run.pt.0123.tmp", ".run.pt.4567.tmp", ".other.pt.0123.tmp", "run.pt.0123.tmp"):
        (tmp_path / name).write_bytes(b"half")
        if "4567" not in name:
            os.utime(tmp_path / name, (long_ago, long_ago))
    write_atomically(tmp_path / "run.pt", b"new")
    assert names(tmp_path) == [".other.pt.0123.tmp", ".run.pt.4567.tmp", "run.pt", "run.pt.0123.tmp"]


@pytest.mark.parametrize("name", ["r" * 255, "\u00e9" * 127])
def test_the_longest_names(tmp_path, name):
    write_atomically(tmp_path / name, b"new")
    check_writable(tmp_path / name)
    assert names(tmp_path) == [name]


def test_check_writable(tmp_path):
    check_writable(tmp_path / "a" / "b" / "run.pt")
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_bytes(b"old")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    unwritable = [tmp_path / "file" / "run.pt", tmp_path / ("r" * 256)]
    if sys.platform == "linux":
        unwritable.append("/proc/self/run.pt")
    for path in unwritable:
        with pytest.raises(ValueError, match=r"path must be a file that can be written, got .*: \[Errno"):
            check_writable(path)


def test_needs_no_torch():
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('atomic', {_atomic.__file__!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "assert not {'torch', 'numpy', 'avalanche', 'avl_plugins'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
