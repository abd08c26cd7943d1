"""Root of an ordinary user's sandboxes has the ids of /etc/subuid, where there are any."""

import inspect
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import NOBODY, OrdinaryUser

FIRST, COUNT = 300_000, 65_536
# In a namespace of mounts of its own: nobody else sees these files.
_ENTER = """
set -e
while [ "$1" != run ]; do mount --bind "${1%%:*}" "${1#*:}"; shift; done
shift; exec "$@"
"""
SCRIPTS = {
    "chown": "touch x && chown 33:44 x && stat -c %u:%g x",
    "setpriv": "setpriv --reuid 33 --regid 33 --clear-groups id -u",
    "su": "useradd -m bob && su bob -c 'touch ~/x && stat -c %U ~/x'",
    "tar": """mkdir s && touch s/a && chown 5:6 s/a && tar cf t s && rm -r s && tar xf t &&
        stat -c %u:%g s/a""",
    "dpkg": """set -e
        mkdir -p p/DEBIAN p/srv
        printf '%s\\n' 'Package: mine' 'Version: 1' 'Architecture: all' 'Maintainer: me' \\
            'Description: x' > p/DEBIAN/control
        printf '#!/bin/sh\\nchown www-data:www-data /srv/owned\\n' > p/DEBIAN/postinst
        chmod 755 p/DEBIAN/postinst; touch p/srv/owned
        dpkg-deb --root-owner-group -b p mine.deb > /dev/null
        apt-get install -y ./mine.deb > log 2>&1 || { cat log; false; }
        stat -c %U /srv/owned""",
}
WORKS = {"chown": "33:44", "setpriv": "33", "su": "bob", "tar": "5:6", "dpkg": "www-data"}


def _story(scripts: dict[str, str], folder: str) -> dict[str, Any]:
    import os

    from agentd import Sandbox, SandboxError

    wanted: Any = {"backend": "linux", "user": "root", "writable": True, "embedded": True}
    with Sandbox.create(**wanted) as sandbox:
        found: dict[str, Any] = {"told": sandbox.enforcement["user_namespace"].detail}
        found |= {name: sandbox.run(script).text.strip() for name, script in scripts.items()}
        found["pids"] = sandbox.enforcement["pids"].detail
    wanted = {"backend": "linux", "user": "root", "embedded": True}
    with Sandbox.create(**wanted) as sandbox:
        sandbox.run("touch x; chown 33:44 x; mkdir -m 700 d; chown 33 d")
        try:
            (copy,) = sandbox.fork()
            with copy:
                found["fork"] = copy.run("stat -c %u:%g x d").text.split()
            sandbox.snapshot().delete()
            found["snapshot"] = "taken"
        except SandboxError as error:
            found["snapshot"] = f"{error.message}; {error.remediation}"
    os.makedirs(folder)
    with Sandbox.create(workspace=f"{folder}:rw", **wanted) as sandbox:
        found["mounted"] = sandbox.run("touch new; stat -c %u:%g . new; id -G").text.split()
        found["outside"] = os.stat(f"{folder}/new").st_uid == os.geteuid()
    with Sandbox.create(backend="linux", embedded=True) as sandbox:
        found["ordinary"] = sandbox.run("cat /proc/self/uid_map; id -G").text.split()
    return found


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def told(as_user: OrdinaryUser, tmp_path: Path) -> Run:
    """What an ordinary user's sandboxes have where other files are mounted over the system's."""
    if os.geteuid() != 0 or not os.path.exists("/etc/subuid") or not os.path.exists("/etc/subgid"):
        pytest.skip("told: takes root, and the files /etc/subuid and /etc/subgid to mount over")
    if shutil.which("newuidmap") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("told: uidmap and dpkg are not installed")

    def run(*mounts: str, drops: Sequence[str] = ()) -> dict[str, Any]:
        code = f"import json\nfrom typing import Any\n{inspect.getsource(_story)}\n"
        code += f"print(json.dumps(_story({SCRIPTS!r}, {str(as_user.home / 'mounted')!r})))"
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *drops]
        enter = ["unshare", "-m", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        done = subprocess.run(
            [*enter, *mounts, "run", *drop, *as_user._python, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=as_user.home,
            env=as_user.env,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Mounts that give the user a range."""
    file = tmp_path / "given"
    file.write_text(f"nobody:{FIRST}:{COUNT}\n")
    return [f"{file}:/etc/subuid", f"{file}:/etc/subgid"]


def test_root_has_the_range_of_the_user(told: Run, given: list[str]) -> None:
    found = told(*given)
    assert found["told"].startswith("uids 0 to 65535 inside: 0 is the caller's own uid outside")
    assert f"its subordinate ids from {FIRST} on" in found["told"]
    assert {name: found[name] for name in WORKS} == WORKS
    assert found["fork"] == ["33:44", "33:0"]
    assert found["snapshot"].startswith("/w/") and "chown it to root" in found["snapshot"]
    assert found["mounted"] == ["0:0", "0:0", "0"] and found["outside"]
    assert found["ordinary"] == ["1000", "0", "1", "1000"], (
        "who is not root has no more than before"
    )


def test_without_a_range_it_is_one_id_and_the_report_says_why(told: Run) -> None:
    found = told()
    assert "uid 0 inside, and no other" in found["told"]
    assert "/etc/subuid gives nobody no ids: as root, usermod --add-subuids" in found["told"]
    assert found["chown"] == found["setpriv"] == found["su"] == ""
    assert (found["fork"], found["snapshot"]) == (["0:0", "0:0"], "taken")
    assert found["mounted"] == ["0:0", "0:0", "0"] and found["outside"]


def test_where_newuidmap_may_not_work_it_is_one_id(told: Run, given: list[str]) -> None:
    """A service's unit, say: what is set-id has no effect there."""
    found = told(*given, drops=["--no-new-privs"])
    assert "uid 0 inside, and no other" in found["told"]
    assert "newgidmap refuses the map" in found["told"]
    assert found["snapshot"] == "taken"
