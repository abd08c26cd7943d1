"""Where policies are compiled is left by nobody, however its maker ended."""

import os
import subprocess
import sys
import time

import pytest

from agentd.policy import source
from agentd.policy.build import Cache
from agentd.policy.workplace import PREFIX, workplace

HOURS = 2 * 3600


def _killed_in_one(parent):
    """Returns the folder of a process that was killed while it had it."""
    code = (
        "import sys, time\n"
        "from agentd.policy.workplace import workplace\n"
        "with workplace(sys.argv[1]) as folder:\n"
        "    print(folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    argv = [sys.executable, "-c", code, str(parent)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = owner.stdout.readline().strip()
        owner.kill()
    return folder


def _some_time_ago(folder):
    then = time.time() - HOURS
    os.utime(folder, (then, then))


def test_what_a_killed_process_left_goes_with_the_next_compile(tmp_path, monkeypatch):
    """In a daemon's state folder, and where temporary files are."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = _killed_in_one(tmp_path)
    assert os.path.isdir(left)
    cache = Cache(str(tmp_path))
    cache.put(source.read("permissive"))
    assert os.path.isdir(left), "it may have been made this moment"
    _some_time_ago(left)
    cache.put(source.read("permissive"))
    assert not os.path.exists(left)
    left = _killed_in_one(tmp_path)
    _some_time_ago(left)
    Cache().close()
    assert not os.path.exists(left)


def test_what_another_is_at_work_in_stays(tmp_path):
    """Control: the lock of who lives, however long ago it began."""
    with workplace(str(tmp_path)) as ours:
        _some_time_ago(ours)
        with workplace(str(tmp_path)) as other:
            assert {ours, other} == {entry.path for entry in os.scandir(tmp_path)}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="chown is root's")
def test_what_is_not_ours_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    theirs, link = tmp_path / f"{PREFIX}theirs", tmp_path / f"{PREFIX}link"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    link.symlink_to(elsewhere)
    for path in (theirs, elsewhere):
        _some_time_ago(path)
    os.utime(link, (0, 0), follow_symlinks=False)
    with workplace(str(tmp_path)):
        assert theirs.exists() and link.is_symlink() and elsewhere.exists()
