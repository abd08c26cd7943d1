"""Subordinate ids for real: a user that /etc/subuid names maps them by newuidmap."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.linux import subids

USER = 4242
RANGE = "300000:65536"
# An ordinary user makes a user namespace in a child, and maps all that it was given.
MAP = """
import json, os
from agentd.linux import subids
from agentd.linux.probe import subordinate_ids
found = subids.own()
if isinstance(found, str):
    print(json.dumps({"why": found, "doctor": subordinate_ids()}))
    raise SystemExit
told, tell = os.pipe()
wait, go = os.pipe()
child = os.fork()
if not child:
    from agentd.linux.kernel import KERNEL
    KERNEL.unshare(0x10000000)
    os.write(tell, b"m")
    os.read(wait, 1)
    os._exit(0)
os.read(told, 1)
answer = {"uids": [found.uids.start, len(found.uids)], "doctor": subordinate_ids()}
try:
    lines = [(0, os.getuid(), 1), (1, found.uids.start, OF)]
    groups = [(0, os.getgid(), 1), (1, found.gids.start, OF)]
    subids.map_ids(child, lines, groups)
    for name in ("uid_map", "gid_map"):
        answer[name] = [line.split() for line in open(f"/proc/{child}/{name}")]
except OSError as error:
    answer["error"] = str(error)
os.write(go, b"g")
os.waitpid(child, 0)
print(json.dumps(answer))
"""


def mapped(tmp_path: Path, given: str, of: str = "65535", name: str = "agent") -> dict[str, object]:
    """What ``MAP`` says as a user to whom /etc/subuid and /etc/subgid give ``given``."""
    user = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
    if subprocess.run([*user, sys.executable, "-c", ""], check=False).returncode:
        pytest.skip(f"{sys.executable} is not for every user to run")
    (tmp_path / "passwd").write_text(f"{name}:x:{USER}:{USER}::/tmp:/bin/sh\n")
    (tmp_path / "subids").write_text(given)
    script = "mount --make-rprivate /; mount --bind passwd /etc/passwd; "
    script += "".join(f"touch {file}; mount --bind subids {file}; " for file in subids.FILES)
    script += 'exec setpriv --reuid "$0" --regid "$0" --clear-groups "$@"'
    argv = ["unshare", "--mount", "sh", "-ec", script, str(USER), sys.executable]
    done = subprocess.run(
        [*argv, "-c", MAP.replace("OF", of)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


pytestmark = pytest.mark.root
real = pytest.mark.skipif(
    any(subids._program(name) is None for name in subids.PROGRAMS), reason="needs newuidmap"
)


@real
@pytest.mark.parametrize("who", ["agent", str(USER)])
def test_a_user_maps_the_range_that_it_was_given(tmp_path: Path, who: str) -> None:
    found = mapped(tmp_path, f"else:100000:65536\n{who}:{RANGE}\n")
    expected = [["0", str(USER), "1"], ["1", "300000", "65535"]]
    assert [found[name] for name in ("uids", "uid_map", "gid_map")] == [
        [300000, 65536],
        expected,
        expected,
    ]
    assert found["doctor"] == "300000 to 365535"


@real
def test_more_than_was_given_is_refused_in_the_programs_own_words(tmp_path: Path) -> None:
    found = mapped(tmp_path, f"agent:{RANGE}\n", of="70000")
    assert str(found["error"]).startswith("newgidmap refuses the map: ")


@real
def test_whom_no_range_was_given_is_told_how_to_have_one(tmp_path: Path) -> None:
    found = mapped(tmp_path, "else:100000:65536\n")
    assert found["doctor"] == found["why"]
    why = str(found["why"])
    assert why.startswith("/etc/subuid gives agent no ids: as root, usermod --add-subuids")


@pytest.mark.parametrize("line", ["", "agent", "agent:x:1", "agent:1:", ":1", "agent:1:2:3"])
def test_a_line_that_is_none_is_passed_over(tmp_path: Path, line: str) -> None:
    file = tmp_path / "subuid"
    file.write_text(f"{line}\nagent:5:6\n")
    assert list(subids.given(str(file))) == [subids.Given("agent", range(5, 11))]
    assert list(subids.given(str(tmp_path / "absent"))) == []
