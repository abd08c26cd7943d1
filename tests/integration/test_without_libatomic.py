"""The policy engine where libraries are missing, as on a system that has no compiler."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import PATH

# An overlay without them hides files, as a bind mount cannot.
_HIDE = """
for name in {names}; do
    for file in $(ls -d /usr/lib/*-linux-gnu*/$name* /usr/lib64/$name* 2>/dev/null); do
        dir=$(dirname $file)
        mountpoint -q $dir || {{
            up={room}$dir/up work={room}$dir/work
            mkdir -p $up $work
            mount -t overlay -o lowerdir=$dir,upperdir=$up,workdir=$work none $dir
        }}
        rm -f $file
    done
done
"""


# A container's read-only root, with nothing mounted in it: what follows is hidden before that.
_READ_ONLY = """
for dir in / /tmp /var/tmp /dev/shm {room}; do
    ! mountpoint -q $dir || mount -o remount,bind,ro $dir
done
cd /
"""


class Hidden:
    """Runs agentd where libraries are not to be found."""

    def __init__(self, folder: Path, *names: str, read_only: bool = False) -> None:
        self._folder = folder
        self._names = names
        self._then = _READ_ONLY if read_only else ""

    def run(self, *words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        return self.python("-m", "agentd", *words, env=env)

    def python(self, *words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        # As a user, a namespace of one's own makes the mount possible.
        unshare = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
        script = _HIDE + self._then + 'exec "$@"\n'
        hide = script.format(names=" ".join(self._names), room=self._folder)
        done = subprocess.run(
            [*unshare, "sh", "-c", hide, "sh", sys.executable, *words],
            capture_output=True,
            text=True,
            check=False,
            env={
                "PATH": PATH,
                "HOME": str(self._folder),
                "AGENTD_DAEMON__STATE": str(self._folder / "state"),
                **(env or {}),
            },
        )
        return done.returncode, done.stdout, done.stderr


def policies(told: str) -> dict[str, Any]:
    """What doctor says of them."""
    (part,) = (part for part in json.loads(told)["parts"] if part["name"] == "policies")
    return dict(part)


def test_policies_are_decided_without_libatomic(tmp_path: Path) -> None:
    """And the libraries of one's own are found, and nothing is left."""
    own, temporary = tmp_path / "lib", tmp_path / "tmp"
    own.mkdir()
    temporary.mkdir()
    (library,) = set(Path("/usr").glob("lib*/**/libstdc++.so.6"))
    shutil.copy(library, own)
    env = {"TMPDIR": str(temporary), "LD_LIBRARY_PATH": str(own)}
    bare = Hidden(tmp_path, "libatomic.so.1", "libstdc++.so.6")
    code, out, err = bare.run("policy", "check", "strict", env=env)
    assert (code, out, err) == (0, "strict: all is well\n", "")
    assert list(temporary.iterdir()) == []


_KILLED_AS_IT_STARTS = """
import os, sys, time
from agentd.policy.process import WorkerProcess
for attempt in range(100):  # it may be missed
    worker, end = WorkerProcess(), time.monotonic() + 20
    while not (seen := os.listdir(sys.argv[1])) and time.monotonic() < end:
        pass
    worker.close()
    if seen:
        break
print(len(seen), os.listdir(sys.argv[1]))
"""


def test_a_worker_that_is_killed_as_it_starts_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    bare = Hidden(tmp_path, "libatomic.so.1")
    words = ("-c", _KILLED_AS_IT_STARTS, str(temporary))
    assert bare.python(*words, env={"TMPDIR": str(temporary)}) == (0, "1 []\n", "")


_NAMED_AS_IT_STARTS = """
import sys, tempfile
from agentd.linux import inotify
from agentd.policy.process import WorkerProcess
tempfile.gettempdir()
seen = inotify.Inotify()
seen.add(sys.argv[1], inotify.IN_CREATE)
worker = WorkerProcess()
worker.engine()
worker.close()
mine = f"agentd-policy-{worker._child.pid}-"
print(*(event.name.startswith(mine) for event in seen.read()))
"""


def test_whatever_a_worker_makes_is_found_by_who_sweeps_after_it(tmp_path: Path) -> None:
    """However early it is killed."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    bare = Hidden(tmp_path, "libatomic.so.1")
    words = ("-c", _NAMED_AS_IT_STARTS, str(temporary))
    assert bare.python(*words, env={"TMPDIR": str(temporary)}) == (0, "True\n", "")


def test_a_call_is_made_without_libatomic(tmp_path: Path) -> None:
    code, out, err = Hidden(tmp_path, "libatomic.so.1").run("call", "fs.list.v1")
    assert code == 0, err
    assert json.loads(out)["entries"] == []


def test_doctor_says_what_stands_in_the_place_of_libatomic(tmp_path: Path) -> None:
    code, out, _ = Hidden(tmp_path, "libatomic.so.1").run("doctor", "--json")
    assert code == 0
    part = policies(out)
    assert part["usable"]
    assert part["notes"][1] == "libatomic.so.1 is missing, and the C library takes its place"


def test_what_is_missing_for_the_engine_is_told_by_name(tmp_path: Path) -> None:
    bare = Hidden(tmp_path, "libatomic.so.1", "libstdc++.so.6")
    expected = (
        "the policy engine cannot be loaded: libstdc++.so.6 is missing "
        "(apt-get install libstdc++6, or dnf install libstdc++)"
    )
    for words in (("call", "fs.list.v1"), ("serve",)):
        code, out, err = bare.run(*words)
        assert code != 0, words
        assert expected in err, words
    code, out, _ = bare.run("doctor", "--json")
    blocker = policies(out)["blockers"][0]
    assert "libstdc++.so.6 is missing" in blocker["what"]
    assert "apt-get install libstdc++6" in blocker["fix"]
    # What asks no policy needs no engine.
    code, out, err = bare.run("call", "fs.list.v1", env={"AGENTD_POLICY": "none"})
    assert code == 0, err


def test_where_nothing_can_be_written_either_that_is_told(tmp_path: Path) -> None:
    bare = Hidden(tmp_path, "libatomic.so.1", read_only=True)
    code, out, err = bare.run("doctor", "--json")
    assert code == 0, err
    assert "nothing could be put in its place" in policies(out)["blockers"][0]["what"]
    for words in (("policy", "check", "strict"), ("selftest", "--backend", "linux")):
        code, out, err = bare.run(*words)
        told = f"agentd {words[0]}: there is no folder for temporary files (set TMPDIR to one "
        assert (code, err.count("\n")) == (125, 1), err
        assert err.startswith(told)
