"""A folder for one process at a time, with real processes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import lock
from benchmarks.harness.lock import NAME, Taken, sole_use, turn

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, time
from pathlib import Path
from benchmarks.harness.lock import sole_use
with sole_use([Path(sys.argv[1])]):
    print("held", flush=True)
    sys.stdin.read()
"""

COUNTER = """
import sys
from pathlib import Path
from benchmarks.harness.lock import Taken, sole_use
folder, count = Path(sys.argv[1]), 0
while count < 50:
    try:
        with sole_use([folder]):
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))
            count += 1
    except Taken:
        pass
"""


def python(code, folder):
    return subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_the_second_process_is_refused_and_told_of_the_first(tmp_path):
    with python(HOLDER, tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(
                Taken, match=rf"^{re.escape(str(tmp_path))} is in use by process {holder.pid} on .+, since 20"
            ),
            sole_use([tmp_path / "other", tmp_path]),
        ):
            raise AssertionError("both have it")
        assert list((tmp_path / "other").iterdir()) == [], "what was locked before is let go of"
        assert holder.poll() is None
        assert (tmp_path / NAME).exists()
        holder.stdin.close()
        assert holder.wait() == 0
    assert list(tmp_path.rglob(NAME)) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path):
    with python(HOLDER, tmp_path) as holder:
        holder.stdout.readline()
        holder.kill()
        assert holder.wait() == -signal.SIGKILL
    assert str(holder.pid) in (tmp_path / NAME).read_text()
    with sole_use([tmp_path]):
        assert f'"process": {os.getpid()},' in (tmp_path / NAME).read_text()
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("content", ["", "{", '{"process": 1}', "[" * 10_000])
def test_an_owner_that_cannot_be_read_is_another_process(tmp_path, content):
    with sole_use([tmp_path]):
        (tmp_path / NAME).write_text(content)
        with pytest.raises(Taken, match="is in use by another process"), sole_use([tmp_path]):
            pass


def test_one_folder_named_twice_is_locked_once(tmp_path):
    with sole_use([tmp_path, tmp_path]):
        assert (tmp_path / NAME).exists()


def test_never_two_at_a_time(tmp_path):
    (tmp_path / "number").write_text("0")
    counters = [python(COUNTER, tmp_path) for _ in range(3)]
    assert [counter.communicate(timeout=120) and counter.returncode for counter in counters] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "150"
    assert not (tmp_path / NAME).exists()


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=NAME), sole_use([tmp_path]):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


def test_where_there_are_no_locks_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "fcntl", None)
    with sole_use([tmp_path]):
        assert "cannot be locked (no locks on this system)" in caplog.text


def test_who_waits_for_a_turn_has_it_after_the_other(tmp_path):
    path, told = tmp_path / "source.lock", []
    with python(HOLDER, tmp_path) as holder:
        holder.stdout.readline()

        def waiting():
            told.append(holder.poll())
            holder.stdin.close()

        with turn(tmp_path / NAME, waiting):
            assert holder.wait() == 0
    assert told[0] is None
    with turn(path, lambda: pytest.fail("nobody has it")):
        assert path.exists()
    assert list(tmp_path.iterdir()) == []
