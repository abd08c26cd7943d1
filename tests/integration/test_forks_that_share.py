"""Forks of namespace sandboxes with much in them: nothing is copied, and nobody sees the other."""

import contextlib
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import OrdinaryUser
from tests.oci import Images, Layout, busybox
from tests.security.daemons import Daemon, fixture, until

from agentd import Sandbox
from agentd.linux.rights import close_all
from agentd.sandbox.backends.child import Starved
from agentd.sandbox.backends.linux.layers import LayerMaker

daemon = fixture()
MIB = 1 << 20
# More than what is copied though nothing runs (``linux/disk.py``).
FILL = """
head -c 48M /dev/zero | tr '\\0' x > large
echo one > a; ln a hard; ln -s a link; mkfifo pipe; chmod 640 a; touch -d @978307200 a
: > su; chmod 4711 su; mkdir -p sub/deep; echo in > sub/deep/file; chmod 750 .
echo home > ~/h; echo tmp > /tmp/t; echo shm > /dev/shm/s; echo var > /var/tmp/v; echo run > /run/r
"""
TELL = """
stat -c '%n %A %u:%g %Y' . a su sub sub/deep; stat -c %h hard; readlink link; ls; wc -c < large
cat a hard sub/deep/file ~/h /tmp/t /dev/shm/s /var/tmp/v /run/r
"""
CHANGE = """
echo $0 >> a; rm large sub/deep/file su; echo $0 > su; mkdir new; echo $0 > new/x; chmod 700 .
rm -r sub; mkdir sub; echo $0 > ~/h; echo $0 > /tmp/$0; rm /var/tmp/v /run/r; echo $0 > /dev/shm/s
"""
# Kilobytes on its own disk, without what it shares.
OWN = "df -k --output=used /workspace | tail -1"


LINUX = {"backend": "linux"}
RUNC, CRUN = ({"backend": "oci", "runtime": name} for name in ("runc", "crun"))


def of_runtimes(*walls: dict[str, str]) -> list[Any]:
    """Parameters of a test: the linux wall, then others, each where its runtime is installed."""
    marked = [
        pytest.param(w, id=w["runtime"], marks=pytest.mark.needs(w["runtime"])) for w in walls
    ]
    return [pytest.param(LINUX, id="linux"), *marked]


@pytest.fixture
def source(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Of the wall that the test's parameter says."""
    wall = getattr(request, "param", LINUX)
    with Sandbox.create(disk="200M", embedded=True, **wall) as sandbox:
        sandbox.run(FILL, check=True)
        yield sandbox


def _changed(sandbox: Sandbox, name: str) -> None:
    sandbox.run(["sh", "-c", CHANGE, name], check=True)


def _own_kilobytes(sandbox: Sandbox) -> int:
    return int(sandbox.run(OWN, check=True).text)


def _story(wall: dict[str, str]) -> dict[str, Any]:
    """What the original and its forks have, as each changes what is its own."""
    with Sandbox.create(disk="200M", embedded=True, **wall) as source:
        source.run(FILL, check=True)
        before = source.run(TELL, check=True).text
        first, second = source.fork(2)
        with first, second:
            found: dict[str, Any] = {
                "same": [one.run(TELL, check=True).text for one in (first, second, source)],
                "own": [int(one.run(OWN).text) for one in (first, second, source)],
            }
            first.run(["sh", "-c", CHANGE, "first"], check=True)
            found["unseen"] = [one.run(TELL, check=True).text for one in (second, source)]
            source.run(["sh", "-c", CHANGE, "source"], check=True)
            found["unseen"].append(second.run(TELL, check=True).text)
            look = "cat a su new/x ~/h /dev/shm/s; ls /tmp sub /var/tmp /run/r; stat -c %A ."
            found["changed"] = [one.run(look).text for one in (first, source)]
            (again,) = source.fork()  # of what it has now
            with again:
                found["again"] = again.run(look).text
            with source.snapshot() as kept, Sandbox.create(snapshot=kept, embedded=True) as copy:
                found["restored"] = copy.run(look).text
            (deeper,) = first.fork()
            with deeper:
                found["deeper"] = deeper.run(look).text
        return {"before": before, **found}


def _check(found: dict[str, Any]) -> None:
    assert set(found["same"] + found["unseen"]) == {found["before"]}
    assert f"{48 * MIB}\n" in found["before"]
    assert max(found["own"]) < 1024, "it was copied"
    for text, name in zip(found["changed"], ("first", "source"), strict=True):
        assert text.split()[:6] == ["one", name, name, name, name, name]
        assert text.endswith(f"/tmp:\n{name}\nt\n\n/var/tmp:\n\nsub:\ndrwx------\n")
    assert found["again"] == found["restored"] == found["changed"][1]
    assert found["deeper"] == found["changed"][0]


@pytest.mark.parametrize("wall", of_runtimes(RUNC, CRUN))
def test_nothing_is_copied_and_nobody_sees_what_another_changes(wall: dict[str, str]) -> None:
    _check(_story(wall))


def _file_systems(sandbox: Sandbox) -> dict[str, tuple[str, str]]:
    """Where each is mounted that has a device, and whether anybody can write it: ro or rw."""
    lines = sandbox.run("cat /proc/self/mountinfo", check=True).text.splitlines()
    return {f[2]: (f[4], f[-1].split(",")[0]) for f in map(str.split, lines)}


@pytest.mark.parametrize("source", of_runtimes(RUNC), indirect=True)
def test_what_they_share_can_be_written_by_no_way(source: Sandbox) -> None:
    """Not by a mount that others cover, nor by a file that somebody has open."""
    lines = source.run("cat /proc/self/mountinfo", check=True).text.splitlines()
    (disk,) = {f[2] for f in map(str.split, lines) if f[4] == "/workspace"}
    assert _file_systems(source)[disk][1] == "rw"
    (fork,) = source.fork()
    with fork:
        assert _file_systems(source)[disk][1] == "ro"
        _, how = _file_systems(fork).get(disk, ("", "ro"))  # a container's fork sees it nowhere
        assert how == "ro"


@pytest.mark.parametrize("wall", of_runtimes(RUNC))
def test_an_ordinary_users_share_too(as_user: OrdinaryUser, wall: dict[str, str]) -> None:
    parts = {"FILL": FILL, "TELL": TELL, "CHANGE": CHANGE, "OWN": OWN}
    names = "\n".join(f"{name} = {text!r}" for name, text in parts.items())
    script = "import json\nfrom typing import Any\nfrom agentd import Sandbox\n" + names
    script += f"\n{inspect.getsource(_story)}\nprint(json.dumps(_story({wall})))"
    ran = as_user.python("-c", script)
    assert ran.returncode == 0, ran.stderr
    _check(json.loads(ran.stdout))


@pytest.mark.parametrize("user", [None, "root"])
@pytest.mark.parametrize("wall", of_runtimes(RUNC))
def test_all_places_can_be_written_and_no_other(wall: dict[str, str], user: str | None) -> None:
    with Sandbox.create(disk="200M", embedded=True, user=user, **wall) as sandbox:
        sandbox.run(FILL, check=True)
        (fork,) = sandbox.fork()
        with fork:
            for one in (sandbox, fork):
                for place in (
                    "/workspace",
                    "/tmp",
                    "~",
                    "/dev/shm",
                    "/var/tmp",
                    "/run",
                    "/var/log",
                ):
                    told = one.run(f"cd {place} && echo x > y && mkdir d && mv y d/z && cat d/z")
                    assert told.text == "x\n", (place, told.stderr)
                for place in ("/", "/etc", "/usr/bin", "/proc/sys/kernel", "/sys"):
                    assert one.run(f"echo x > {place}/y").exit_code != 0, place
                assert one.run("umount /workspace || umount /tmp").exit_code != 0
                if user == "root" and os.geteuid() == 0:
                    owned = one.run("chown 33:44 large hard && stat -c %u:%g large hard a")
                    assert owned.text == "33:44\n33:44\n0:0\n", owned.stderr


@pytest.mark.parametrize("wall", of_runtimes(RUNC))
def test_owners_are_kept_in_another_block_of_ids(wall: dict[str, str]) -> None:
    with Sandbox.create(disk="200M", embedded=True, user="root", **wall) as sandbox:
        sandbox.run(FILL, check=True)
        own = (
            sandbox.run(
                "touch x && chown 33:44 x && mkdir -m 700 /tmp/d && chown 33 /tmp/d"
            ).exit_code
            == 0
        )
        if os.geteuid() == 0:
            assert own
        copies = sandbox.fork(2)
        for copy in copies:
            with copy:
                if own:
                    assert copy.run("stat -c %u:%g x /tmp/d").text == "33:44\n33:0\n"
                    copy.run(
                        "setpriv --reuid 33 --regid 33 --clear-groups touch /tmp/d/y", check=True
                    )
                assert copy.run("echo more >> a && cat a").text == "one\nmore\n"


@pytest.mark.parametrize(
    "program",
    [
        "cd sub; exec sleep 1000",  # its working directory is there
        "exec sleep 1000 >> a",  # its file is open
        "exec 3< large; exec sleep 1000",
    ],
)
@pytest.mark.parametrize("source", of_runtimes(RUNC), indirect=True)
def test_what_runs_goes_on_undisturbed(source: Sandbox, program: str) -> None:
    source.run(f"(setsid sh -c '{program}' >/dev/null 2>&1 &)", check=True)
    look = "for p in /proc/[0-9]*; do grep -l sleep $p/comm; done 2>/dev/null | cut -d/ -f3"
    until(lambda: source.run(look).text)  # the shell becomes it a moment after it is left alone
    (pid,) = source.run(look).text.split()
    (fork,) = source.fork()
    with fork:
        assert _own_kilobytes(fork) > 40 * 1024, "what has files open was shared"
        fork.run("echo fork > a; echo fork > sub/fork", check=True)
        told = source.run(
            f"ls /proc/{pid}/cwd/; echo on > /proc/{pid}/cwd/new; cat a; ls -R ."
        ).text
        assert "fork" not in told and "new" in told


@pytest.mark.parametrize("source", of_runtimes(RUNC, CRUN), indirect=True)
def test_one_outlives_the_other(source: Sandbox) -> None:
    first, second = source.fork(2)
    source.close()
    with second:
        with first:
            assert first.run("cat a").text == "one\n"
        (third,) = second.fork()
        with third:
            assert third.run("wc -c < large; cat /tmp/t").text == f"{48 * MIB}\ntmp\n"
            third.run("rm large", check=True)
        assert second.run("wc -c < large").text == f"{48 * MIB}\n"


def test_what_an_overlay_is_not_is_as_the_page_says(source: Sandbox) -> None:
    (fork,) = source.fork()
    with fork:
        assert fork.run("stat -c %h a").text == "2\n"
        assert fork.run("echo x >> a; cat a hard").text == "one\nx\none\n"
        rename = "import os; os.rename('sub/deep', 'sub/moved')"
        assert "cross-device" in fork.run(["python3", "-c", rename]).stderr_text
        assert fork.run("mv sub moved && cat moved/deep/file").text == "in\n"
        assert source.run("cat a hard; ls sub").text == "one\none\ndeep\n"


@pytest.mark.parametrize("source", of_runtimes(RUNC), indirect=True)
def test_the_disk_limit_counts_what_is_shared(source: Sandbox) -> None:
    (fork,) = source.fork()
    with fork:
        for one in (source, fork):
            assert one.run("head -c 160M /dev/zero | tr '\\0' x > b").exit_code != 0
            assert one.run("rm b; head -c 100M /dev/zero | tr '\\0' x > b; wc -c < b").text == (
                f"{100 * MIB}\n"
            )


@pytest.mark.needs("skopeo", "umoci")
@pytest.mark.parametrize("wall", of_runtimes(RUNC))
def test_those_of_an_image_share_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wall: dict[str, str]
) -> None:
    images, layout = Images(tmp_path), Layout(tmp_path / "layout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.cache))
    images.run("pull", layout.add([busybox()], {"User": "77"}, tag="mine"), "--name", "mine")
    fill = "head -c 48M /dev/zero | tr '\\0' x > large; echo one > /tmp/a; echo one > a"
    with Sandbox.create(image="mine", disk="200M", embedded=True, **wall) as sandbox:
        sandbox.run(fill, check=True)
        (fork,) = sandbox.fork()
        with fork:
            own = fork.run("df -k /workspace | tail -1").text.split()[2]
            assert int(own) < 1024, "it was copied"
            fork.run("echo fork > a; echo fork > /tmp/a; rm large", check=True)
            assert fork.run("id -u; cat a /tmp/a; ls").text == "77\nfork\nfork\na\n"
        assert sandbox.run("cat a /tmp/a; ls").text == "one\none\na\nlarge\n"


def test_a_full_disk_is_copied_and_goes_on() -> None:
    with Sandbox.create(backend="linux", disk="50M", embedded=True) as sandbox:
        sandbox.run("head -c 48M /dev/zero | tr '\\0' x > large", check=True)
        (fork,) = sandbox.fork()
        with fork:
            for one in (sandbox, fork):
                told = one.run("rm large; head -c 48M /dev/zero | tr '\\0' y > l; wc -c < l").text
                assert told == f"{48 * MIB}\n"


def test_a_daemons_share_and_outlive_each_other(daemon: Daemon) -> None:
    key = daemon.key("alice")
    made = daemon.sandbox(key, backend="linux", disk="200M")

    def told(id_: str, script: str) -> str:
        answer = daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": script}, key=key)
        assert answer.status == 200, answer.body
        return str(answer.json["stdout"])

    told(made, FILL)
    before = told(made, TELL)
    copies = daemon.ask("POST", f"/v1/sandboxes/{made}/fork", {"count": 2}, key=key).json
    ids = [copy["id"] for copy in copies]
    assert [told(id_, TELL) for id_ in (*ids, made)] == [before] * 3
    assert int(told(ids[0], OWN)) < 1024, "it was copied"
    told(made, "echo changed > a; rm large")
    assert told(ids[0], TELL) == before
    assert daemon.ask("DELETE", f"/v1/sandboxes/{made}", key=key).status == 204
    assert told(ids[1], TELL) == before


@pytest.mark.parametrize("source", of_runtimes(RUNC), indirect=True)
def test_nothing_of_one_stays_behind(source: Sandbox) -> None:
    """No namespace of mounts, which would keep a layer in memory."""
    own = ["that in which its disk is", "that which holds the layer"]
    for fork in source.fork(2):
        fork.run("echo more >> a", check=True)
        fork.fork()[0].close()
        fork.close()
    until(lambda: _held("mnt:") == len(own))
    source.close()
    until(lambda: _held("mnt:") == 0)


@pytest.mark.parametrize("source", of_runtimes(RUNC), indirect=True)
def test_one_fork_after_the_other_has_all_and_what_was_made_for_the_next_is_freed(
    source: Sandbox,
) -> None:
    before = _held("/ ")
    for _ in range(6):  # more than the zygote makes a mount for at once
        (fork,) = source.fork()
        with fork:
            assert fork.run("wc -c < large; cat a").text == f"{48 * MIB}\none\n"
    assert _held("/ ") > before
    source.close()
    until(lambda: _held("/ ") == before)


@pytest.mark.parametrize("source", of_runtimes(RUNC), indirect=True)
def test_nothing_is_lost_where_no_descriptor_is_left_for_what_is_to_be_shared(
    source: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can write then what was there, and what is changed since lies above it."""
    stack = LayerMaker.stack

    def stack_and_lose(*args: Any) -> Any:
        held, lent = stack(*args)
        close_all([*held, *lent])
        raise Starved("no descriptor is left")

    with monkeypatch.context() as patch, pytest.raises(Starved):
        patch.setattr(LayerMaker, "stack", stack_and_lose)
        source.fork()
    _changed(source, "source")
    look = "cat a su new/x ~/h /dev/shm/s; ls . /tmp sub /var/tmp /run/r; stat -c %A ."
    wanted = source.run(look).text
    assert wanted.startswith("one\nsource\nsource\nsource\n")
    for _ in range(2):
        (fork,) = source.fork()
        with fork, source.snapshot() as kept, Sandbox.create(snapshot=kept, embedded=True) as copy:
            assert [one.run(look).text for one in (fork, copy)] == [wanted] * 2
            fork.run("echo fork > a", check=True)
        source.run("echo more > more", check=True)
        wanted = source.run(look).text


def _held(prefix: str) -> int:
    """Descriptors of this process that are of such a path; a detached mount's is ``/``."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found += f"{os.readlink(f'/proc/self/fd/{fd}')} ".startswith(prefix)
    return found
