"""Named volumes: what outlives a sandbox, who has it, who may not, and who may be killed."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import OrdinaryUser
from tests.security.daemons import Daemon, fixture, running, until

from agentd import AgentdError, Client, Conflict, InvalidInput, NotFound, Sandbox
from agentd.client import embedded
from agentd.client.cli import place
from agentd.client.cli.main import main
from agentd.client.embedded_service import EmbeddedService
from agentd.linux import paths
from agentd.model.errors import SandboxError

daemon = fixture()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state of this process's own, for what needs no daemon."""
    monkeypatch.setenv("AGENTD_DAEMON__STATE", str(tmp_path))
    return tmp_path


def cli(*words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "agentd", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)


def said(*words: str) -> str:
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


WRITE = "umask 077; echo by-$(id -u) > /data/$(id -u); mkdir -p /data/d; echo in > /data/d/f"
READ = "cat /data/0 /data/1000 /data/d/f; stat -c %u /data/0 /data/1000 /data/d/f /data"


def outlives() -> list[str]:
    """What another sandbox reads of what root and the user of two have written."""
    for user in ("root", "sandbox"):
        done = cli("run", "--embedded", "--volume", "v:/data", "--user", user, "--", "sh", "-c",
                   WRITE)  # fmt: skip
        assert done.returncode == 0, done.stderr
    return said("run", "--embedded", "--volume", "v:/data:ro", "--", "sh", "-c", READ).split()


_READ = ["by-0", "by-1000", "in", "1000", "1000", "1000", "1000"]


def test_files_are_the_next_sandboxs_whoever_wrote_them(own: Path) -> None:
    assert said("volume", "create", "--embedded", "v") == "v\n"
    assert outlives() == _READ
    view = json.loads(said("volume", "inspect", "--embedded", "v", "--json"))
    assert (view["name"], view["sandboxes"]) == ("v", [])
    told = cli("run", "-v", "--embedded", "--volume", "v:/data:ro", "--", "touch", "/data/x")
    assert told.returncode == 1, told.stderr
    assert "Read-only file system" in told.stderr
    (line,) = [line for line in told.stderr.splitlines() if line.startswith("mount /data")]
    assert "volume:v" in line
    assert "nothing bounds its size" in line
    assert said("volume", "rm", "--embedded", "v") == ""
    assert said("volume", "ls", "--embedded", "--json") == "[]\n"


def _loops(folder: Path) -> list[str]:
    """The files in it that a loop device has."""
    found = Path("/sys/block").glob("loop*/loop/backing_file")
    with contextlib.suppress(OSError):
        return [text for path in found if (text := path.read_text()).startswith(str(folder))]
    return ["one that went as we looked"]


@pytest.mark.root
@pytest.mark.parametrize("wall", ["linux", pytest.param("oci", marks=pytest.mark.needs("runc"))])
def test_one_with_a_size_holds_no_more(own: Path, wall: str) -> None:
    fill = "head -c 40M /dev/zero > /data/big; wc -c < /data/big; rm /data/big; echo x > /data/f"
    with _volumes() as volumes:
        assert volumes.create("v", "32MiB").size == 32 << 20
        with Sandbox.create(volumes=["v:/data"], backend=wall, embedded=True) as box:
            assert box.run("ls -A /data; stat -c %u /data", check=True).text == "1000\n"
            assert (
                "at most 32 MiB, a file system of its own" in box.enforcement["mount /data"].detail
            )
            filled = box.run(fill)
            assert b"No space left on device" in filled.stderr
            assert 16 << 20 < int(filled.text) < 32 << 20
            # Another, of another wall, and one that only reads: they are of one file system.
            with Sandbox.create(volumes=["v:/d"], user="root", embedded=True) as other:
                assert other.run("cat /d/f; chown 5:6 /d/f; echo y > /d/g").text == "x\n"
                assert box.run("cat /data/g", check=True).text == "y\n"
            with pytest.raises(Conflict, match="is in use"):
                volumes.snapshot("v", "w")
            with Sandbox.create(volumes=["v:/d:ro"], embedded=True) as reader:
                assert reader.run("touch /d/f").exit_code == 1
        assert volumes.snapshot("v", "w").size == 32 << 20
        with Sandbox.create(volumes=["w:/data"], user="root", embedded=True) as box:
            assert box.run("stat -c %u:%g /data/f; cat /data/g", check=True).text == "5:6\ny\n"
            assert b"No space left on device" in box.run(fill).stderr
        assert sum(path.stat().st_blocks for path in own.rglob("*.img")) >= (64 << 20) / 512
        for name in ("v", "w"):
            volumes.delete(name)
    until(lambda: not _loops(own))


@pytest.mark.root
def test_nothing_of_its_file_system_outlives_who_is_killed(own: Path) -> None:
    with _volumes() as volumes:
        volumes.create("v", "32MiB")
    holds = (
        "import sys; from agentd import Sandbox\n"
        "with Sandbox.create(volumes=['v:/data'], embedded=True) as box:\n"
        "    box.run('echo kept > /data/f; sync', check=True); print(flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", holds]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert _loops(own)
        process.kill()
    until(lambda: not _loops(own))
    read = said("run", "--embedded", "--volume", "v:/data", "--", "cat", "/data/f")
    assert read == "kept\n"
    assert main(["volume", "rm", "--embedded", "v"]) == 0


# As many containers have it. A folder for it, the nodes that it has; then a command.
DEV = """
mount -t tmpfs -o mode=755 dev "$1"
for name in $2; do cp -a "/dev/$name" "$1/$name"; done
mount --bind "$1" /dev
shift 2
exec "$@"
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("nodes", "words"), [("", "/dev/loop-control"), (" loop-control", "/dev/")]
)
def test_a_size_without_a_loop_device_is_refused_by_its_name(
    own: Path, tmp_path: Path, nodes: str, words: str
) -> None:
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("there is no loop device here")
    create = [sys.executable, "-m", "agentd", "volume", "create", "--embedded", "v"]
    ask = ["unshare", "--mount", "sh", "-ec", DEV, "sh", str(tmp_path), f"null urandom{nodes}"]
    done = subprocess.run([*ask, *create, "--size", "32MiB"], capture_output=True, check=False)
    said = done.stderr.decode()
    assert done.returncode == 125
    assert f"no loop device can be had: {words}" in said, said
    assert "No such file or directory" in said
    if not nodes:
        assert "cannot be enforced here" in said
        assert "modprobe loop" in said
    assert main(["volume", "create", "--embedded", "v"]) == 0  # nothing is left of it
    assert main(["volume", "rm", "--embedded", "v"]) == 0


def test_an_ordinary_user_has_them_too(as_user: OrdinaryUser) -> None:
    def run(*words: str, code: int = 0) -> str:
        done = as_user.agentd(*words)
        assert done.returncode == code, done.stderr
        return (done.stdout + done.stderr).decode()

    refused = run("volume", "create", "--embedded", "v", "--size", "1GiB", code=125)
    assert "cannot be enforced here: agentd does not run as root" in refused
    run("volume", "create", "--embedded", "v")
    for user in ("root", "sandbox"):
        run("run", "--embedded", "--volume", "v:/data", "--user", user, "--", "sh", "-c", WRITE)
    # Closed to their owner: they go all the same.
    run("run", "--embedded", "--volume", "v:/data", "--", "sh", "-c", "chmod 0 /data/d")
    read = run("run", "--embedded", "--volume", "v:/data:ro", "--", "cat", "/data/0", "/data/1000")
    assert read.split() == ["by-0", "by-1000"]
    run("volume", "rm", "--embedded", "v")
    assert run("volume", "ls", "--embedded", "--json") == "[]\n"


@pytest.mark.root
def test_root_of_a_sandbox_has_owners_of_its_own_there(own: Path) -> None:
    """As a database's image chowns its folder: the next root finds them, and the host no set-id
    program and no file of anybody it knows."""
    said("volume", "create", "--embedded", "v")
    first = "chown 105:106 /data; install -o 33 -g 44 /dev/null /data/x; stat -c %u:%g /data/x"
    script = ["sh", "-c", first]
    assert said("run", "--embedded", "--user", "root", "--volume", "v:/data", "--", *script) == (
        "33:44\n"
    )
    again = ["sh", "-c", "stat -c %u:%g /data /data/x; chmod u+s /data/x"]
    done = cli("run", "--embedded", "--user", "root", "--volume", "v:/data", "--", *again)
    assert done.stdout == "105:106\n33:44\n"
    assert done.returncode == 1, "a set-id bit was set"
    owners = {os.lstat(path).st_uid for path in own.rglob("x")}
    assert owners, "the file is nowhere"
    assert all(owner > 1 << 20 for owner in owners)
    said("volume", "rm", "--embedded", "v")


@pytest.mark.parametrize(
    "wall",
    [
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=pytest.mark.needs("runsc")),
    ],
)
def test_walls_of_oci_runtimes_have_the_same(own: Path, wall: str) -> None:
    assert main(["volume", "create", "--embedded", "v"]) == 0
    with Sandbox.create(volumes=["v:/data"], user="root", embedded=True) as box:
        box.run(WRITE, check=True)
    with Sandbox.create(volumes=["v:/data"], backend=wall, embedded=True) as box:
        box.run(WRITE, check=True)
        with Sandbox.create(volumes=["v:/data"], embedded=True) as other:
            other.run("echo at-once > /data/now", check=True)
        assert box.run("cat /data/now", check=True).text == "at-once\n"
        assert box.run(READ, check=True).text.split() == _READ
        refused = box.run("cp /usr/bin/id /data/id; chmod 4755 /data/id; chmod g+s /data")
        assert refused.exit_code == 1, "a set-id bit was set"
        assert not [path for path in (own, *own.rglob("*")) if path.lstat().st_mode & 0o6000]
        box.run("rm /data/id", check=True)
        assert "volume:v, owned by the sandbox's user" in box.enforcement["mount /data"].detail
        assert main(["volume", "rm", "--embedded", "v"]) != 0
    with Sandbox.create(volumes=["v:/data:ro"], embedded=True) as box:
        assert box.run(READ, check=True).text.split() == _READ
    assert main(["volume", "rm", "--embedded", "v"]) == 0


def test_a_snapshot_is_a_volume_of_its_own(own: Path) -> None:
    assert main(["volume", "create", "--embedded", "v"]) == 0
    fill = (
        "umask 077; cd /data; echo one > a; ln a hard; ln -s /etc/passwd link; mkfifo pipe; "
        "mkdir d; echo in > d/f; chmod 750 d; touch -d @978307200 a; truncate -s 1G holes"
    )
    tell = "cd /data; stat -c '%n %A %u %h %Y %s' * d/f; readlink link; cat a d/f"
    with Sandbox.create(volumes=["v:/data"], embedded=True) as writer:
        writer.run(fill, check=True)
        told = writer.run(tell, check=True).text
        with _volumes() as volumes, pytest.raises(Conflict, match=f"written to: by {writer.id}"):
            volumes.snapshot("v", "w")
    with Sandbox.create(volumes=["v:/data:ro"], embedded=True), _volumes() as volumes:
        assert volumes.snapshot("v", "w").sandboxes == ()
        with pytest.raises(Conflict, match="there is a volume w already"):
            volumes.snapshot("v", "w")
        with pytest.raises(NotFound, match="no volume 'none'"):
            volumes.snapshot("none", "x")
        with pytest.raises(InvalidInput, match="is not a name"):
            volumes.snapshot("v", "../x")
    with Sandbox.create(volumes=["w:/data"], embedded=True) as other:
        assert other.run(tell, check=True).text == told
        other.run("echo two > /data/a", check=True)
    with Sandbox.create(volumes=["v:/data:ro"], embedded=True) as first:
        assert first.run("cat /data/a", check=True).text == "one\n"
    assert sum(path.stat().st_blocks for path in own.rglob("holes")) < 1 << 10
    assert main(["volume", "rm", "--embedded", "v", "w"]) == 0


@contextlib.contextmanager
def _volumes() -> Iterator[Any]:
    """This process's own, as the command line has them."""
    with place.service(None) as service:
        yield service.volumes


# cp waits to be let go: what is copied meanwhile is nobody's to change.
_SLOW_CP = """#!/bin/sh
/usr/bin/touch "$0.began"; while [ ! -e "$0.go" ]; do /bin/sleep 0.05; done
exec /bin/cp "$@"
"""


def test_killed_while_it_copies_it_leaves_nothing(own: Path) -> None:
    """Nor is it removed under cp, or written to, before that has ended, too."""
    assert main(["volume", "create", "--embedded", "v"]) == 0
    with Sandbox.create(volumes=["v:/data"], embedded=True) as box:
        box.run("echo one > /data/a", check=True)
    slow = own / "cp"
    slow.write_text(_SLOW_CP)
    slow.chmod(0o755)
    script = (
        "import sys; from agentd.sandbox import volume_copy\n"
        f"volume_copy._PATH = {str(own)!r}\n"
        "from agentd.client.cli.main import main; main(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", script, "volume", "snapshot", "--embedded", "v", "w"]
    with subprocess.Popen(argv) as process:
        until((own / "cp.began").exists)
        process.kill()
    with pytest.raises(Conflict, match="is being copied"):
        Sandbox.create(volumes=["v:/data"], embedded=True)
    assert main(["volume", "rm", "--embedded", "v"]) != 0
    (own / "cp.go").touch()
    until(lambda: main(["volume", "rm", "--embedded", "v"]) == 0)
    assert main(["volume", "ls", "--embedded"]) == 0
    assert [path.name for path in (own / "volumes").glob(".*")] == []


def test_what_is_wrong_is_told_with_the_way_out(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["create", "v"], ""),
        (["create", "v"], "there is a volume v already"),
        (["create", "../v"], "is not a name"),
        (["create", "x" * 65], "is not a name"),
        (["create", "small", "--size", "1M"], "size"),
        (["create", "small", "--size", "1"], "a size of 1 byte is too little"),
        (["create", "odd", "--size", "much"], "size"),
        (["rm", "none"], "there is no volume 'none' (agentd volume ls lists yours)"),
        (["inspect", "none"], "there is no volume 'none'"),
    ):
        assert bool(main(["volume", words[0], "--embedded", *words[1:]])) is bool(told), words
        assert told in capsys.readouterr().err, words
    for volume, more, told in (
        ("none:/data", {}, "no volume 'none'.*agentd volume create none makes it"),
        ("v", {}, "has no target"),
        ("v:/data:cow", {}, "cannot be cow"),
        ("v:/data:rx", {}, "unknown mode 'rx'"),
        ("v:/usr/x", {}, "belongs to the wall"),
        ("v:data", {}, "is not a plain absolute path"),
        ("/tmp:/data", {}, "is not a name"),
        ("v:/data", {"mounts": ["/tmp:/data"]}, "two mounts have the target"),
        ("v:/data", {"backend": "landlock"}, "backend landlock takes no volume"),
        ("v:/data", {"backend": "host"}, "backend host takes no volume"),
    ):
        with pytest.raises(AgentdError, match=told):
            Sandbox.create(volumes=[volume], embedded=True, **more)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no list"):
        Sandbox.create(volumes="v:/data", embedded=True)
    assert main(["volume", "rm", "--embedded", "v"]) == 0


def test_in_use_it_stays_until_the_last_has_ended_however_that_ends(own: Path) -> None:
    said("volume", "create", "--embedded", "v")
    with Sandbox.create(volumes=["v:/data"], embedded=True) as one:
        with Sandbox.create(volumes=["v:/data"], embedded=True) as other:
            one.run("echo here > /data/f", check=True)
            assert other.run("cat /data/f", check=True).text == "here\n"
            view = json.loads(said("volume", "inspect", "--embedded", "v", "--json"))
            assert view["sandboxes"] == sorted([one.id, other.id])
        refused = cli("volume", "rm", "--embedded", "v")
        assert refused.returncode != 0
        assert one.id in refused.stderr
        assert other.id not in refused.stderr
        assert one.run("cat /data/f", check=True).text == "here\n"
    holds = (
        "import sys; from agentd import Sandbox\n"
        "with Sandbox.create(volumes=['v:/data'], embedded=True) as box:\n"
        "    print(box.id, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", holds]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        id_ = process.stdout.readline().decode().strip()
        assert id_ in cli("volume", "rm", "--embedded", "v").stderr
        process.kill()
    assert json.loads(said("volume", "ls", "--embedded", "--json"))[0]["sandboxes"] == []
    said("run", "--embedded", "--volume", "v:/data", "--", "true")  # removes that one's cgroup, too
    said("volume", "rm", "--embedded", "v")


def test_what_is_told_not_to_be_made_is_not_there(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name could not be made safe from a loss of power, as no descriptor was left for that."""
    service = EmbeddedService(embedded.new())

    def short(path: str) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "sync", short)
        with pytest.raises(SandboxError, match="volume v cannot be made"):
            service.volumes.create("v")
    assert service.volumes.list() == ()
    service.volumes.create("v")
    service.volumes.delete("v")
    service.pipeline.manager.close()


# Each mkdir, rename, unlink and rmdir is a place to be killed at; the hook comes before each.
_KILLED = """
import os, signal, sys
sys.dont_write_bytecode = True
from agentd.client.cli.main import main
import agentd.client.cli.volume, agentd.client.embedded_service, agentd.daemon.calls.embedded
import agentd.client.cli.place, agentd.daemon.pipeline, agentd.sandbox.volumes
def attempt(at, words):
    pid = os.fork()
    if pid:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    left = [at]
    def hook(event, _):
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    os.dup2(2, 1)
    os._exit(main(words))
def all_attempts(words, before=(), after=()):
    at = 1
    while True:
        for each in before:
            assert not attempt(1 << 30, each)
        killed = attempt(at, words)
        names = sorted(os.listdir(sys.argv[1]))
        for each in after:
            assert not attempt(1 << 30, each)
        left = [n for n in sorted(os.listdir(sys.argv[1])) if n.startswith(".")]
        assert not left, (at, words, names, left)
        if not killed:
            return at
        at += 1
create, remove = ["volume", "create", "--embedded", "v"], ["volume", "rm", "--embedded", "v"]
made = all_attempts(create, after=[["volume", "ls", "--embedded"], remove])
gone = all_attempts(remove, before=[create], after=[["volume", "ls", "--embedded"]])
print(made, gone)
"""


def test_killed_anywhere_it_leaves_none_that_is_half(own: Path) -> None:
    """Made or not made, there or gone; and what was left behind the next command removes."""
    os.mkdir(own / "volumes", 0o700)
    argv = [sys.executable, "-c", _KILLED, str(own / "volumes")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    made, gone = map(int, done.stdout.split())
    assert made > 4, "it was killed at no place"
    assert gone > 4, "it was killed at no place"


# --- of a daemon ---


@pytest.fixture
def volume(daemon: Daemon) -> Iterator[str]:
    assert daemon.ask("POST", "/v1/volumes", {"name": "v"}).status == 201
    yield "v"
    until(lambda: daemon.ask("DELETE", "/v1/volumes/v").status in (204, 404))


def ran(daemon: Daemon, box: str, script: str, key: str = "") -> Any:
    answer = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": script}, key=key)
    assert answer.status == 200, answer.body
    return answer.json


def test_a_daemons_by_rest_and_the_sdk(daemon: Daemon, volume: str) -> None:
    one, other = (daemon.sandbox(volumes=["v:/data"]) for _ in range(2))
    assert ran(daemon, one, "echo here > /data/f")["exit_code"] == 0
    assert ran(daemon, other, "cat /data/f")["stdout"] == "here\n"
    with Client(daemon.url) as client:
        assert client.volumes.get("v").sandboxes == tuple(sorted((one, other)))
        with pytest.raises(Conflict) as refused:
            client.volumes.delete("v")
        assert one in str(refused.value)
        with pytest.raises(Conflict):
            client.volumes.create("v")
        with pytest.raises(NotFound):
            client.volumes.get("none")
        with pytest.raises(Conflict):
            client.volumes.snapshot("v", "a")
        client.volumes.create("a")
        assert client.volumes.snapshot("a", "b").name == "b"
        client.volumes.delete("b")
        assert [view.name for view in client.volumes.list()] == ["a", "v"]
        client.volumes.delete("a")
    listed = daemon.ask("GET", "/v1/volumes")
    assert [view["name"] for view in listed.json] == ["v"]
    assert listed.json[0]["principal"] == f"uid:{os.getuid()}"
    for box in (one, other):
        assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
    with Sandbox.create(volumes=["v:/data:ro"], url=daemon.url) as third:
        assert third.run("cat /data/f", check=True).text == "here\n"
        assert third.run("touch /data/f").exit_code == 1
        assert "volume:v" in third.enforcement["mount /data"].detail
    kinds = [record.kind for record in daemon.records() if "volume" in record.kind]
    assert kinds == ["volume_created"] * 3 + ["volume_deleted"] * 2


def test_the_command_line_uses_the_daemons(daemon: Daemon, volume: str) -> None:
    wrote = daemon.cli("run", "--volume", "v:/data", "--", "sh", "-c", "echo cli > /data/f")
    assert wrote.returncode == 0, wrote.stderr
    assert daemon.cli("volume", "snapshot", "v", "w").stdout == b"w\n"
    some = daemon.cli("volume", "rm", "none", "w", "--json")  # the others go all the same
    assert (some.returncode, some.stdout) == (125, b'{"removed":["w"]}\n')
    assert b"no volume 'none'" in some.stderr
    assert b"sandboxes" not in daemon.cli("volume", "inspect", "a/b").stderr
    made = daemon.cli("create", "--volume", "v:/data:ro")
    box = made.stdout.decode().strip()
    assert box in daemon.cli("volume", "ls").stdout.decode()
    assert box.encode() in daemon.cli("volume", "rm", "v").stderr
    assert ran(daemon, box, "cat /data/f")["stdout"] == "cli\n"
    # The same volumes, without it.
    assert box in daemon.cli("volume", "inspect", "v", "--embedded").stdout.decode()
    assert box.encode() in daemon.cli("volume", "rm", "v", "--embedded").stderr
    daemon.cli("kill", box)


def test_one_principal_has_256_at_most(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["volume", "create", "--embedded", "first"]) == 0
    (first,) = (own / "volumes").glob("*/first")
    for number in range(255):  # to make as many would take its time
        shutil.copytree(first, first.parent / f"v{number}")
    for words in (["create", "more"], ["snapshot", "first", "more"]):
        assert main(["volume", words[0], "--embedded", *words[1:]]) != 0
        said = capsys.readouterr().err
        assert f"uid:{os.getuid()} has 256 volumes already" in said and "remove some" in said
    assert main(["volume", "rm", "--embedded", "first"]) == 0
    assert main(["volume", "create", "--embedded", "more"]) == 0


def test_where_others_may_write_are_none(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["volume", "create", "--embedded", "v"]) == 0
    (own / "volumes").chmod(0o777)
    for words in (["create", "w"], ["ls"], ["rm", "v"]):
        assert main(["volume", *words, "--embedded"]) != 0
        assert "volumes could be written by others" in capsys.readouterr().err
    (own / "volumes").chmod(0o700)
    assert main(["volume", "rm", "--embedded", "v"]) == 0


def test_they_are_of_ones_own_and_take_a_scope(daemon: Daemon, volume: str) -> None:
    plain = daemon.key("bob")
    for method, path, body in (
        ("POST", "/v1/volumes", {"name": "b"}),
        ("GET", "/v1/volumes", None),
        ("GET", "/v1/volumes/v", None),
        ("DELETE", "/v1/volumes/v", None),
        ("POST", "/v1/volumes/v/snapshot", {"name": "b"}),
        ("POST", "/v1/sandboxes", {"volumes": ["v:/data"]}),
    ):
        assert daemon.ask(method, path, body, key=plain).status == 403, path
    bob = daemon.key("bob", "run", "create", "read", "volumes")
    assert daemon.ask("GET", "/v1/volumes", key=bob).json == []
    assert daemon.ask("GET", "/v1/volumes/v", key=bob).status == 404
    assert daemon.ask("DELETE", "/v1/volumes/v", key=bob).status == 404
    copied = daemon.ask("POST", "/v1/volumes/v/snapshot", {"name": "b"}, key=bob)
    assert copied.status == 404
    assert daemon.ask("POST", "/v1/sandboxes", {"volumes": ["v:/data"]}, key=bob).status == 404
    # It is no folder of the host: a mount takes another scope, and no name leads there.
    mounted = daemon.ask("POST", "/v1/sandboxes", {"mounts": ["v:/data"]}, key=bob)
    assert mounted.status == 403
    assert daemon.ask("POST", "/v1/volumes", {"name": "v"}, key=bob).status == 201
    box = daemon.sandbox(key=bob, volumes=["v:/data"])
    assert ran(daemon, box, "ls -A /data", key=bob)["stdout"] == ""
    assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
    assert daemon.ask("DELETE", "/v1/volumes/v", key=bob).status == 204
    assert daemon.ask("GET", "/v1/volumes/v").status == 200


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "", "x" * 65, "a/b"])
def test_no_other_name_is_one(daemon: Daemon, name: str) -> None:
    assert daemon.ask("POST", "/v1/volumes", {"name": name}).code == "invalid_input"
    wanted = {"volumes": [f"{name}:/data"]}
    assert daemon.ask("POST", "/v1/sandboxes", wanted).code == "invalid_input"


def test_a_policy_sees_them() -> None:
    rules = (
        'default decision := {"allow": true}\n'
        'decision := {"allow": false, "reasons": ["no secrets"]} if {\n'
        "some mount in input.sandbox.mounts\n"
        'mount.source == "volume:secrets"\nmount.mode == "rw"\n}'
    )
    with running(policy=rules) as daemon:
        for name in ("secrets", "others"):
            assert daemon.ask("POST", "/v1/volumes", {"name": name}).status == 201
        for volume, status in (
            ("secrets:/data", 403),
            ("secrets:/data:ro", 201),
            ("others:/data", 201),
        ):
            made = daemon.ask("POST", "/v1/sandboxes", {"volumes": [volume]})
            assert made.status == status, made.body
        called = daemon.call(
            "shell.exec.v1", {"command": "true"}, create={"volumes": ["secrets:/data"]}
        )
        assert called.code == "policy_denied"


def test_a_daemon_killed_leaves_them_to_their_sandboxes_and_to_the_next() -> None:
    with running() as daemon:
        assert daemon.ask("POST", "/v1/volumes", {"name": "v"}).status == 201
        box = daemon.sandbox(volumes=["v:/data"])
        ran(daemon, box, "echo before > /data/f")
        daemon.stop(kill=True)
        # Whoever asks meanwhile is told that it is in use, though no daemon lives.
        refused = daemon.cli("volume", "rm", "--embedded", "v")
        assert box.encode() in refused.stderr
        daemon.start()
        assert daemon.ask("GET", "/v1/volumes/v").json["sandboxes"] == [box]
        assert daemon.ask("DELETE", "/v1/volumes/v").code == "conflict"
        assert ran(daemon, box, "cat /data/f")["stdout"] == "before\n"
        assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
        until(lambda: daemon.ask("GET", "/v1/volumes/v").json["sandboxes"] == [])
        again = daemon.sandbox(volumes=["v:/data"])
        assert ran(daemon, again, "cat /data/f")["stdout"] == "before\n"
        daemon.stop(kill=True)
        daemon.end_supervisor()
        daemon.start()
        assert daemon.ask("DELETE", "/v1/volumes/v").status == 204
        assert daemon.ask("GET", "/v1/volumes").json == []


def test_a_call_without_a_daemon_has_them(own: Path) -> None:
    said("volume", "create", "--embedded", "v")
    with Sandbox.create(volumes=["v:/data"], embedded=True) as box:
        box.run("echo kept > /data/f", check=True)
    call = ["call", "shell.exec.v1", "--embedded", "--volume", "v:/data"]
    parameters = json.dumps({"command": "cat", "args": ["/data/f"]})
    assert "kept" in said(*call, "--params", parameters)
    said("volume", "rm", "--embedded", "v")


def test_where_none_can_be_kept_another_place_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variable = "XDG_STATE_HOME" if os.geteuid() else "AGENTD_DAEMON__STATE"
    monkeypatch.setenv(variable, "/proc/none")
    for words in (("volume", "ls", "--embedded"), ("volume", "create", "--embedded", "v")):
        assert main([*words]) == 125
        assert f"with room; or set {variable})" in capsys.readouterr().err
