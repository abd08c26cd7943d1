"""Snapshots and forks of namespace sandboxes: what is kept, for whom, and who may be killed."""

import contextlib
import errno
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import OrdinaryUser
from tests.security.daemons import Daemon, Later, fixture, running

from agentd import Refused, Sandbox, SandboxError
from agentd.daemon.sandboxes.snapshots import MAX_OF_ONE
from agentd.sandbox.backends.linux import saving

daemon = fixture()
FILL = """
echo kept > a; chmod 640 a; ln a hard; ln -s /etc/hostname link; mkfifo pipe; truncate -s 1T holes
: > su; chmod 4711 su
mkdir -p sub/closed; echo in > sub/closed/file; touch -d @978307200 sub/closed/file
chmod 000 sub/closed; chmod 555 sub
echo home > ~/h; echo tmp > /tmp/t; echo shm > /dev/shm/s; mkdir ~/.config; echo x > ~/.config/y
python3 -c 'import os; os.setxattr("a", "user.origin", b"here")' || echo no attributes
(setsid sleep 1000 >/dev/null 2>&1 &)
"""
# Each file's kind, mode, owner, links, size and time of change; and what can be read of them.
TELL = """
cd /
stat -c '%n %A %u:%g %h %Y %s' workspace/* workspace/sub/* home/sandbox/.config/* tmp/* dev/shm/*
cd; chmod 755 /workspace/sub /workspace/sub/closed; cat /workspace/hard /workspace/sub/closed/file
cat ~/h ~/.config/y /tmp/t /dev/shm/s; readlink /workspace/link
python3 -c 'import os; print(os.getxattr("/workspace/hard", "user.origin"))' || echo no attributes
"""


def _fill_and_tell(folder: str) -> dict[str, Any]:
    """What a sandbox has, and what one from its snapshot and its forks have."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Sandbox.create(backend="linux", embedded=True))
        first.run(FILL, check=True)
        kept = first.snapshot(os.path.join(folder, "kept"))
        copies = [stack.enter_context(copy) for copy in first.fork(2)]
        again = stack.enter_context(Sandbox.create(snapshot=kept.path, embedded=True))
        told = [one.run(TELL, check=True).text for one in (again, *copies, first)]
        there = [one.run(["ls", "/proc"]).text.split() for one in (again, first)]
        return {
            "fidelity": kept.fidelity,
            "told": told,
            "processes": [len([n for n in names if n.isdigit()]) for names in there],
            "mode": oct(os.stat(kept.path).st_mode & 0o777),
            "files": sorted(os.listdir(kept.state)),
            "bytes": kept.size,
        }


def _check(found: dict[str, Any]) -> None:
    assert found["fidelity"] == "files"
    assert len(set(found["told"])) == 1, found["told"]
    assert "sub/closed d--------- 1000:1000" in found["told"][0]
    assert found["told"][0].split("\n")[-9:-3] == ["kept", "in", "home", "x", "tmp", "shm"]
    assert found["processes"] == [2, 3], "the sleep was kept, or its own was ended"
    assert (found["mode"], found["files"]) == ("0o700", ["content", "entries"])
    assert found["bytes"] < 1 << 20, "holes take room"


def test_all_that_was_written_comes_back_and_no_process(tmp_path: Path) -> None:
    _check(_fill_and_tell(str(tmp_path)))


def test_an_ordinary_users_do_too(as_user: OrdinaryUser) -> None:
    script = "import contextlib, json, os\nfrom typing import Any\nfrom agentd import Sandbox\n"
    script += f"FILL, TELL = {FILL!r}, {TELL!r}\n{inspect.getsource(_fill_and_tell)}\n"
    ran = as_user.python("-c", f"{script}print(json.dumps(_fill_and_tell({str(as_user.home)!r})))")
    assert ran.returncode == 0, ran.stderr
    _check(json.loads(ran.stdout))


def test_a_writable_root_is_kept_with_its_owners_and_what_is_gone() -> None:
    fill = "mkdir /app; echo x > /app/x; echo y > /etc/y; rm /etc/passwd; echo z > /usr/bin/zz"
    tell = "ls /etc; cat /app/x /etc/y /usr/bin/zz; ls /usr/bin | wc -l; stat -c '%n %u:%g' /app/x"
    wanted: Any = {"backend": "linux", "user": "root", "writable": True, "embedded": True}
    with Sandbox.create(**wanted) as sandbox:
        sandbox.run(fill, check=True)
        if os.geteuid() == 0:
            sandbox.run("chown 33:44 /app/x", check=True)
        (copy,) = sandbox.fork()
        with copy:
            told = copy.run(tell, check=True).text
            assert told == sandbox.run(tell, check=True).text
            assert "passwd" not in told.split() and "y" in told.split()
            assert os.geteuid() or "/app/x 33:44" in told
            copy.run("rm -r /app /etc/y; echo new > /etc/passwd", check=True)
        assert sandbox.run(tell, check=True).text == told


def test_the_disk_limit_holds_in_a_copy() -> None:
    with Sandbox.create(backend="linux", disk="32M", embedded=True) as sandbox:
        sandbox.run("head -c 20M /dev/zero | tr '\\0' x > a", check=True)
        (copy,) = sandbox.fork()
        with copy:
            assert copy.run("head -c 20M /dev/zero | tr '\\0' x > b").exit_code != 0
            assert copy.run("stat -c %s a").text == "20971520\n"
            assert copy.run("df -k --output=size /tmp | tail -1").text.strip() == "32768"


def test_where_the_room_goes_meanwhile_it_says_what_helps_and_the_sandbox_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Sandbox.create(backend="linux", embedded=True) as sandbox:
        with monkeypatch.context() as patch:
            patch.setattr(saving, "save", full)
            with pytest.raises(SandboxError, match="No space left on device") as caught:
                sandbox.snapshot(tmp_path / "kept")
        told = caught.value.message, caught.value.remediation
        assert told == ("the snapshot cannot be written", "make room, and try again")
        assert sandbox.run("echo on").text == "on\n" and list(tmp_path.iterdir()) == []


def test_what_is_the_hosts_is_not_kept(tmp_path: Path) -> None:
    for mode in ("rw", "ro", "cow"):
        with (
            Sandbox.create(
                backend="linux", workspace=f"{tmp_path}:{mode}", embedded=True
            ) as sandbox,
            pytest.raises(Refused, match="host directories are mounted in it") as caught,
        ):
            sandbox.snapshot()
        assert caught.value.remediation


def test_one_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    with Sandbox.create(backend="linux", embedded=True) as sandbox:
        sandbox.run("echo kept > a", check=True)
        kept = sandbox.snapshot(tmp_path / "kept")
    with open(f"{kept.state}/entries", "r+b") as file:
        data = file.read()
        file.seek(0)
        file.write(data.replace(b"\xc4\x01a", b"\xc4\x01b"))
    with pytest.raises(SandboxError, match="is damaged"):
        Sandbox.create(snapshot=kept.path, embedded=True)


def test_what_a_killed_program_was_keeping_goes_with_the_next_and_nobody_elses_does(
    tmp_path: Path,
) -> None:
    fill = "head -c 100000000 /dev/urandom > large"
    words = ["run", "--embedded", "--save-snapshot", str(tmp_path / "kept"), "--"]
    begun = subprocess.Popen([sys.executable, "-m", "agentd", *words, "sh", "-c", fill])

    def halves() -> list[Path]:
        return [path for path in tmp_path.glob(".kept.*") if list(path.glob("state/*"))]

    while not halves():
        assert begun.poll() is None
    begun.send_signal(signal.SIGSTOP)
    (half,) = halves()
    names = (".kept.notes", ".kept.previous", ".kept.agentd-12345678")
    others = [tmp_path / name for name in names]
    for folder in others[:2]:  # which somebody calls so, and which nobody locks
        folder.mkdir()
    others[2].touch()
    with Sandbox.create(backend="linux", embedded=True) as sandbox:
        with sandbox.snapshot(str(tmp_path / "kept")) as kept:
            assert half.is_dir(), "that of one who lives is nobody else's"
            kept.delete()
        begun.kill()
        begun.wait()
        sandbox.snapshot(str(tmp_path / "kept"))
    reap = "from agentd.sandbox.backends.cgroups import own_hierarchy; own_hierarchy()"
    subprocess.run([sys.executable, "-c", reap], check=True)  # as the next process does
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "kept"])


def test_over_rest(daemon: Daemon) -> None:
    alice, bob = daemon.key("alice"), daemon.key("bob")
    made = daemon.sandbox(alice, backend="linux")
    where = f"/v1/sandboxes/{made}"
    assert daemon.ask("POST", f"{where}/exec", {"cmd": "echo kept > a"}, key=alice).status == 200
    kept = daemon.ask("POST", f"{where}/snapshot", key=alice)
    assert (kept.status, kept.json["fidelity"], kept.json["sandbox"]) == (201, "files", made)
    path = f"/v1/snapshots/{kept.json['id']}"
    assert daemon.ask("GET", path, key=alice).json == kept.json
    assert daemon.ask("GET", where, key=alice).json["fidelity"] == "files"
    for method, asked in (("GET", path), ("DELETE", path)):  # as one that is not there
        answer = daemon.ask(method, asked, key=bob)
        assert answer.code == "not_found", answer.body
    refused = daemon.ask("POST", "/v1/sandboxes", {"snapshot": kept.json["id"]}, key=bob)
    assert refused.code == "not_found", refused.body
    assert daemon.ask("POST", f"{where}/fork", {"count": 1}, key=bob).code == "not_found"
    for count in (0, -1, 65, 1 << 62):
        refused = daemon.ask("POST", f"{where}/fork", {"count": count}, key=alice)
        assert (refused.status, refused.json["remediation"]) == (400, "give 1 to 64"), count
    copies = daemon.ask("POST", f"{where}/fork", {"count": 2}, key=alice).json
    again = daemon.sandbox(alice, snapshot=kept.json["id"])
    for id_ in (again, *(copy["id"] for copy in copies)):
        ran = daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": "cat a"}, key=alice).json
        assert ran["stdout"] == "kept\n", ran
    assert daemon.ask("DELETE", path, key=alice).status == 204
    assert daemon.ask("GET", "/v1/snapshots", key=alice).json == []


def test_one_principal_has_so_many(daemon: Daemon) -> None:
    erin = daemon.key("erin")
    where = f"/v1/sandboxes/{daemon.sandbox(erin)}/snapshot"
    folder = daemon.state / "snapshots"
    about = {"sandbox": "sbx-gone", "principal": "erin", "created": 0.0}
    for number in range(MAX_OF_ONE):
        (folder / f"snp-{number}").mkdir(0o700)
        (folder / f"snp-{number}" / "about.json").write_text(json.dumps(about))
    refused = daemon.ask("POST", where, key=erin)
    assert (refused.status, refused.code) == (429, "quota_exceeded"), refused.body
    assert daemon.ask("DELETE", "/v1/snapshots/snp-0", key=erin).status == 204  # damaged as it is
    assert daemon.ask("POST", where, key=erin).status == 201
    assert daemon.ask("POST", where, key=erin).code == "quota_exceeded"
    for number in range(1, MAX_OF_ONE):
        shutil.rmtree(folder / f"snp-{number}")


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"isolation": "microvm"}, "gives isolation namespace, less than the microvm asked for"),
        ({"backend": "oci"}, "is of backend linux, not oci"),
        *(
            ({name: value}, f"has the snapshot's {kept}")
            for name, value, kept in (
                ("memory", "64M", "memory"),
                ("pids", 7, "pids"),
                ("net_bytes", "1M", "net_bytes"),
                ("user", "root", "user"),
                ("writable", True, "writable"),
                ("packages", ["six"], "packages"),
                ("image", "other", "image"),
                ("runtime", "crun", "runtime"),
                ("volumes", ["a:/b"], "mounts"),
                ("workspace", "/tmp", "mounts"),
            )
        ),
    ],
    ids=str,
)
def test_what_a_snapshot_says_is_not_said_anew(
    daemon: Daemon, kept: str, asked: dict[str, object], what: str
) -> None:
    answer = daemon.ask("POST", "/v1/sandboxes", {"snapshot": kept, **asked})
    assert answer.status in (400, 403) and what in answer.json["message"], answer.body


@pytest.fixture(scope="module")
def kept(daemon: Daemon) -> str:
    id_ = daemon.ask("POST", "/v1/sandboxes", {}).json["id"]
    found = str(daemon.ask("POST", f"/v1/sandboxes/{id_}/snapshot").json["id"])
    daemon.ask("DELETE", f"/v1/sandboxes/{id_}")
    return found


def test_by_the_command_line(tmp_path: Path, daemon: Daemon) -> None:
    path = str(tmp_path / "kept")
    ran = daemon.cli("run", "--save-snapshot", path, "--", "sh", "-c", "echo kept > a")
    assert ran.returncode == 0, ran.stderr
    assert daemon.cli("run", "--snapshot", path, "--", "cat", "a").stdout == b"kept\n"
    shown = json.loads(daemon.cli("snapshot", "inspect", "--json", path).stdout)
    assert (shown["fidelity"], shown["backend"]) == ("files", "linux")
    assert daemon.cli("snapshot", "rm", path).returncode == 0
    assert not os.path.exists(path)


def test_a_daemons_by_the_command_line(daemon: Daemon) -> None:
    alice, bob = daemon.key("alice"), daemon.key("bob")
    made = daemon.sandbox(alice, backend="linux")
    daemon.ask("POST", f"/v1/sandboxes/{made}/exec", {"cmd": "echo kept > a"}, key=alice)
    taken = daemon.cli("snapshot", "take", made, key=alice)
    assert taken.returncode == 0, taken.stderr
    id_ = taken.stdout.decode().strip()
    assert taken.stderr == b"agentd snapshot: files: its files, and no process\n"
    (row,) = json.loads(daemon.cli("snapshot", "ls", "--json", key=alice).stdout)
    assert (row["id"], row["sandbox"], row["fidelity"]) == (id_, made, "files")
    assert id_ in daemon.cli("snapshot", "ls", key=alice).stdout.decode()
    assert json.loads(daemon.cli("snapshot", "inspect", id_, "--json", key=alice).stdout) == row
    for action, what in (("inspect", id_), ("rm", id_), ("take", made)):
        refused = daemon.cli("snapshot", action, what, key=bob)
        assert refused.returncode == 125 and b"there is no s" in refused.stderr, refused.stderr
    assert daemon.cli("snapshot", "ls", "--json", key=bob).stdout == b"[]\n"
    again = daemon.cli("create", "--snapshot", id_, key=alice).stdout.decode().strip()
    assert daemon.cli("exec", again, "--", "cat", "a", key=alice).stdout == b"kept\n"
    assert daemon.cli("snapshot", "rm", id_, key=alice).returncode == 0
    assert daemon.cli("snapshot", "inspect", id_, key=alice).returncode == 125


def test_copies_by_the_command_line(daemon: Daemon) -> None:
    alice, bob = daemon.key("alice"), daemon.key("bob")
    made = daemon.sandbox(alice, backend="linux", name="build")
    daemon.ask("POST", f"/v1/sandboxes/{made}/exec", {"cmd": "echo kept > a"}, key=alice)
    forked = daemon.cli("fork", "build", key=alice)
    assert (forked.returncode, forked.stderr) == (
        0,
        b"agentd fork: files: its files, and no process\n",
    )
    copy = forked.stdout.decode().strip()
    assert daemon.cli("exec", copy, "--", "cat", "a", key=alice).stdout == b"kept\n"
    told = daemon.cli("fork", made, "--count", "2", "--json", key=alice)
    views = json.loads(told.stdout)
    assert [view["fidelity"] for view in views] == ["files", "files"] and told.stderr == b""
    assert len({made, copy, *(view["id"] for view in views)}) == 4
    before = daemon.cli("ls", "--json", key=alice).stdout
    for count in ("0", "65", "x", "-1", "1.0"):
        refused = daemon.cli("fork", made, f"--count={count}", key=alice)
        assert refused.returncode == 2, refused.stderr
        assert b"give a number from 1 to 64" in refused.stderr
    refused = daemon.cli("fork", made, key=bob)
    assert refused.returncode == 125 and b"there is no sandbox" in refused.stderr, refused.stderr
    assert daemon.cli("ls", "--json", key=alice).stdout == before


def test_one_with_folders_of_the_host_is_refused_by_each_door_and_they_are_named(
    daemon: Daemon, tmp_path: Path
) -> None:
    work, kept = tmp_path / "work", tmp_path / "kept"
    work.mkdir()
    for mode in ("rw", "cow"):
        made = daemon.sandbox(backend="linux", workspace=f"{work}:{mode}")
        for operation in ("snapshot", "fork"):
            told = daemon.ask("POST", f"/v1/sandboxes/{made}/{operation}")
            assert (told.status, told.code) == (403, "refused"), told.body
            assert told.json["cause"] == f"{work} at /workspace"
            assert "agentd cp" in told.json["remediation"]
            assert ("apply" in told.json["remediation"]) is (mode == "cow")
        for words in (["snapshot", "take"], ["fork"]):
            taken = daemon.cli(*words, made)
            assert taken.returncode == 125 and b"are mounted in it" in taken.stderr, taken.stderr
    ran = daemon.cli("run", "--save-snapshot", str(kept), "-w", f"{work}:rw", "--", "touch", "ran")
    assert ran.returncode == 125 and str(work) in ran.stderr.decode(), ran.stderr
    assert not kept.exists() and os.listdir(work) == []


def _partial(daemon: Daemon) -> bool:
    return any((daemon.state / "snapshots").glob("snp-*/.snapshot.*/state/content"))


def test_a_daemon_killed_amid_it_leaves_nothing_and_the_sandbox_goes_on() -> None:
    with running() as daemon:
        made = daemon.sandbox(backend="linux")
        where = f"/v1/sandboxes/{made}"
        big = {"cmd": "head -c 256M /dev/zero | tr '\\0' x > a"}
        assert daemon.ask("POST", f"{where}/exec", big).json["exit_code"] == 0
        caught = False
        for _ in range(20):  # a machine may be faster than we look
            asked = Later(lambda: _answer_or_none(daemon, f"{where}/snapshot"))
            while not asked.is_over and not (caught := _partial(daemon)):
                time.sleep(0.001)
            if caught:
                break
        assert caught
        daemon.stop(kill=True)
        asked.answer()
        daemon.start()
        left = [view["id"] for view in daemon.ask("GET", "/v1/snapshots").json]
        assert sorted(os.listdir(daemon.state / "snapshots")) == sorted(left)
        assert not _partial(daemon)
        ran = daemon.ask("POST", f"{where}/exec", {"cmd": "stat -c %s a"}).json
        assert ran["stdout"] == "268435456\n", ran
        assert daemon.ask("POST", f"{where}/snapshot").status == 201


def _answer_or_none(daemon: Daemon, path: str) -> Any:
    try:
        return daemon.ask("POST", path)
    except OSError as error:  # it was killed
        return error


@pytest.fixture
def busy() -> Iterator[Sandbox]:
    """Its program changes two files at once, all the time."""
    loop = "n=0; while :; do n=$((n+1)); echo $n > a; echo $n > b; done"
    with Sandbox.create(backend="linux", embedded=True) as sandbox:
        sandbox.run(["sh", "-c", f"setsid sh -c '{loop}' >/dev/null 2>&1 &"], check=True)
        sandbox.run("until [ -s b ]; do sleep 0.01; done", check=True)
        yield sandbox


def test_it_is_of_one_moment(busy: Sandbox) -> None:
    """What runs in it is stopped meanwhile, and goes on."""
    for _ in range(5):
        (copy,) = busy.fork()
        with copy:
            first, second = copy.run("cat a; echo /; cat b").text.split("/")
            # One of them may be empty, just before it is written.
            numbers = [int(text) for text in (first, second) if text.strip()]
            assert numbers and max(numbers) - min(numbers) <= 1, (first, second)
    before = busy.run("cat a b").text
    busy.run(f"until [ \"$(cat a b)\" != '{before.strip()}' ]; do :; done", check=True, timeout=60)


def test_its_end_ends_a_snapshot_of_it(tmp_path: Path) -> None:
    sandbox = Sandbox.create(backend="linux", embedded=True)
    sandbox.run("head -c 256M /dev/zero | tr '\\0' x > a", check=True)
    said: list[BaseException] = []

    def keep() -> None:
        try:
            sandbox.snapshot(tmp_path / "kept")
        except SandboxError as error:
            said.append(error)

    keeping = threading.Thread(target=keep)
    keeping.start()
    while keeping.is_alive() and not list(tmp_path.glob(".kept.*/state/content")):
        time.sleep(0.001)
    sandbox.close()
    keeping.join(60)
    assert not keeping.is_alive()
    # It was quicker, or it was ended: never half of one.
    assert sorted(os.listdir(tmp_path)) == ([] if said else ["kept"])
