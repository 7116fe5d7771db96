"""Files written whole or not at all: two writers, kills, links, full disks; and folders refused before the work."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avl_plugins import _atomic
from benchmarks.harness.files import blaming, check_folder, check_target, remove_events, write_atomically

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


WRITER = """
import sys
from pathlib import Path
from benchmarks.harness.files import write_atomically
path, letter, times = Path(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
print("writing", flush=True)
for _ in range(times):
    write_atomically(path, letter * 200_000, flush=False)
"""


def test_a_new_file_has_the_usual_permissions_and_its_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "new.txt"
    old = os.umask(0o027)
    try:
        write_atomically(path, b"new")
    finally:
        os.umask(old)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(path.parent) == ["new.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o400])
def test_an_old_file_s_permissions_are_kept(tmp_path, mode):
    path = tmp_path / "old.txt"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_atomically(path, b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", mode)


def test_a_link_is_followed_also_to_what_is_not_there_yet(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    for content in (b"first", b"second"):
        write_atomically(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    assert names(tmp_path) == ["link.txt", "there"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to a device", "link to itself"])
def test_what_is_no_plain_file_is_refused_and_stays(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path(os.devnull)
    else:
        path.symlink_to(os.devnull if "device" in kind else path)
    before = path.lstat().st_mode
    with pytest.raises(ValueError, match=f"path must be a regular file or a new one, got the .* '{path}'"):
        write_atomically(path, b"new")
    with pytest.raises(ValueError, match="--out: path must be a regular file"):
        check_target(path, "--out")
    assert path.lstat().st_mode == before
    assert path == Path(os.devnull) or names(tmp_path) == ["it"]


def test_a_link_planted_under_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    victim, path = tmp_path / "victim", tmp_path / "run.json"
    victim.write_bytes(b"precious")
    path.write_bytes(b"old")
    monkeypatch.setattr(_atomic.secrets, "token_hex", lambda n: "f" * 2 * n)
    (tmp_path / f".run.json.{'f' * 16}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"new")
    assert (victim.read_bytes(), path.read_bytes()) == (b"precious", b"old")


def test_the_temporary_name_cannot_be_foreseen(tmp_path, monkeypatch):
    seen, replace = set(), os.replace
    monkeypatch.setattr(_atomic.os, "replace", lambda a, b: (seen.add(a.name), replace(a, b)))
    for _ in range(20):
        write_atomically(tmp_path / "run.json", b"new")
    assert len(seen) == 20


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_failing_write_changes_nothing_and_leaves_nothing(tmp_path, monkeypatch, error):
    path = tmp_path / "run.json"
    path.write_bytes(b"old")

    def fail(file):
        raise error

    monkeypatch.setattr(_atomic.os, "fsync", fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert names(tmp_path) == ["run.json"]
    assert path.read_bytes() == b"old"


def test_two_writers_and_a_reader(tmp_path):
    path = tmp_path / "run.json"
    whole = {letter * 200_000 for letter in (b"a", b"b")}
    write_atomically(path, b"a" * 200_000)
    writers = [python(WRITER, path, letter, 300) for letter in "ab"]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        assert path.read_bytes() in whole
        reads += 1
    assert [writer.wait() for writer in writers] == [0, 0]
    assert reads > 50
    assert names(tmp_path) == ["run.json"]
    for writer in writers:
        writer.stdout.close()


def test_what_killed_writers_leave_behind_is_removed_by_the_next(tmp_path):
    path = tmp_path / "run.json"
    for k in range(8):
        writer = python(WRITER, path, "a", 100_000)
        writer.stdout.readline()
        time.sleep(0.01 * k)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        assert not path.exists() or path.read_bytes() == b"a" * 200_000
    (tmp_path / f".run.json.{'0' * 16}.tmp").write_bytes(b"half")
    write_atomically(path, b"new")
    assert names(tmp_path) == ["run.json"]


def test_only_left_overs_of_this_file_that_nobody_writes_are_removed(tmp_path):
    path = tmp_path / "run.json"
    other = [f".run.json.{'0' * 15}.tmp", ".run.json.local", f".run.jsonl.{'0' * 16}.tmp", f".run.json.{'0' * 16}.tmp~"]
    for name in other:
        (tmp_path / name).write_bytes(b"theirs")
    os.mkfifo(tmp_path / f".run.json.{'1' * 16}.tmp")  # opening it would wait for ever
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / f".run.json.{'2' * 16}.tmp").symlink_to(tmp_path / "victim")
    with _atomic.temporary_beside(path) as (temporary, _):  # another writer, in the middle of it
        write_atomically(path, b"new")
        assert temporary.exists()
    assert set(other) <= set(names(tmp_path))
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_long_names_have_room_for_the_temporary_one(tmp_path):
    path = tmp_path / ("ü" * 127)  # 254 bytes
    write_atomically(path, b"new")
    assert [len(name) for name in names(tmp_path)] == [127]


@pytest.mark.parametrize(
    ("folder", "why"),
    [("{tmp}/file/below", "{tmp}/file is no folder"), ("{tmp}/file", "is no folder"), ("/dev/full/x", "no folder")],
)
def test_a_folder_below_a_file_is_refused(tmp_path, folder, why):
    (tmp_path / "file").write_bytes(b"")
    folder, why = folder.format(tmp=tmp_path), why.format(tmp=tmp_path)
    with pytest.raises(ValueError, match=f"--out: {folder} cannot be written to .*{why}.*; choose another"):
        check_folder(Path(folder), "--out")
    with pytest.raises(ValueError, match="--out: "):
        check_target(Path(folder) / "perf.json", "--out")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_file_system_that_takes_no_files_is_refused():
    with pytest.raises(ValueError, match="--logdir: /proc/x/y cannot be written to"):
        check_folder(Path("/proc/x/y"), "--logdir")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_read_only_or_full_folder_is_refused_with_the_reason(tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_atomic.os, "fsync", fail) if code == errno.ENOSPC else monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ValueError, match=rf"cannot be written to \({os.strerror(code)}\)"):
        check_folder(tmp_path / "new", "--out")
    assert names(tmp_path) == []


def test_a_good_folder_is_neither_made_nor_changed(tmp_path, monkeypatch):
    check_folder(tmp_path / "new" / "deep", "--out")
    check_folder(tmp_path, "--out")
    check_target(tmp_path / "new" / "perf.json", "--out")
    monkeypatch.chdir(tmp_path)
    check_folder(Path("relative/deep"), "--out")
    assert names(tmp_path) == []


def test_only_a_tensorboard_folder_s_logs_are_removed(tmp_path):
    for name in ("events.out.tfevents.1.host", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    remove_events(tmp_path)
    remove_events(tmp_path / "none")
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("a"), "x is broken (KeyError: 'a'); mend it"),
        (ValueError("a\n  b"), "x is broken (a b); mend it"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(error, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$") as caught, blaming(Path("x"), "is broken", "mend it"):
        raise error
    assert caught.value.__cause__ is error
