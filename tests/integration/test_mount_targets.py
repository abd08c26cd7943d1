"""Where mounts may go: no spelling leads over the wall's own places; what has no place is told."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import running

from agentd import AgentdError, InvalidInput, Mount, Sandbox
from agentd.sandbox.backends.oci import runtimes

TWO_SLASHES = ("//", "//etc", "//proc", "//usr", "//dev", "//sys/x", "//bin/x", "//.agentd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inside").write_text("x")
    (tmp_path / "file").write_text("x")
    return tmp_path


def refused(**options: Any) -> AgentdError:
    with pytest.raises(InvalidInput) as told:
        Sandbox.create(embedded=True, **options).close()
    assert told.value.remediation
    return told.value


@pytest.mark.parametrize("target", TWO_SLASHES)
def test_two_slashes_are_no_way_around_what_is_the_walls(folder: Path, target: str) -> None:
    """POSIX has normpath leave them, and to Linux they are one."""
    assert "is not a plain absolute path" in refused(mounts=[f"{folder}/folder:{target}"]).message
    mount = Mount(f"{folder}/folder", target, "rw")  # type: ignore[arg-type]
    assert "is not a plain absolute path" in refused(mounts=[mount]).message


def test_nor_are_they_at_other_doors(folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "agentd", "run", "--mount", f"{folder}/folder://etc", "--", "true"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 2 and "'//etc' is not a plain absolute path" in ran.stderr
    with running(f"[sandbox]\nmounts = ['/{folder}']\n") as daemon:
        for asked in ({"mounts": [f"{folder}:/{t}"]} for t in ("/etc", "/m")):
            told = daemon.ask("POST", "/v1/sandboxes", asked)
            assert told.status == 400 and b"is not a plain absolute path" in told.body
        made = daemon.ask("POST", "/v1/sandboxes", {"mounts": [f"/{folder}/folder:/m"]})
        assert made.status == 201, made.body


@pytest.mark.parametrize(
    ("what", "target", "why"),
    [
        ("folder", "/etc/hosts", "no folder goes where a file is: '/etc/hosts'"),
        ("folder", "/etc/hosts/x", "a file is on its way: '/etc/hosts/x'"),
        ("folder", "/var/run", "no folder goes where a link is: '/var/run'"),
        ("file", "/tmp", "no file goes where a folder is: '/tmp'"),
        ("file", "/home", "no file goes where a folder is: '/home'"),
    ],
)
def test_what_has_no_place_there_is_told_by_name(
    folder: Path, what: str, target: str, why: str
) -> None:
    assert why in refused(backend="linux", mounts=[f"{folder}/{what}:{target}"]).cause


@pytest.mark.skipif(not os.path.isdir("/var/lib/dpkg"), reason="no Debian: it shows no folder so")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_nothing_is_made_in_a_folder_of_the_hosts_that_is_shown(folder: Path, what: str) -> None:
    told = refused(backend="linux", mounts=[f"{folder}/{what}:/var/lib/dpkg/new"])
    assert "nothing can be made in the host's own folder that it is in" in told.cause
    assert "'/var/lib/dpkg/new'" in told.cause
    assert told.remediation == "mount it elsewhere, such as at /data"


@pytest.mark.skipif(runtimes.find("runc") is None, reason="runc is not installed")
@pytest.mark.parametrize(
    ("what", "target"), [("folder", "/etc/hosts"), ("file", "/tmp"), ("file", "/etc/mtab")]
)
def test_behind_an_oci_runtime_too(folder: Path, what: str, target: str) -> None:
    told = refused(backend="oci", runtime="runc", mounts=[f"{folder}/{what}:{target}"])
    assert "has no place" in told.message and target in told.cause


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        (("/var/run/x", "/run/x"), "the mounts /var/run/x and /run/x are one place"),
        (("/var/lock/x/y", "/run/lock/x"), "/var/lock/x/y lies inside another mount, /run/lock/x"),
        (("/run/x", "/var/run/x/y"), "/var/run/x/y lies inside another mount, /run/x"),
    ],
)
def test_no_mount_covers_another_that_a_link_leads_to(
    folder: Path, targets: tuple[str, ...], why: str
) -> None:
    mounts = [f"{folder}/folder:{target}" for target in targets]
    assert why in refused(backend="linux", mounts=mounts).message


def test_what_would_be_in_the_hosts_own_directories_is_the_callers_to_mend(folder: Path) -> None:
    with Sandbox.create(embedded=True) as sandbox:
        lines = sandbox.run("cat /proc/self/mountinfo").text.splitlines()
        mounted = [line.split()[4] for line in lines if line.split()[4].startswith("/etc/")]
        own = [path for path in mounted if sandbox.run(["test", "-d", path]).ok]
    if not own:
        pytest.skip("nothing in /etc of this machine is shown as it is")
    with running(f"[sandbox]\nmounts = ['{folder}']\nprivate_programs = true\n") as daemon:
        told = daemon.ask("POST", "/v1/sandboxes", {"mounts": [f"{folder}/file:{own[0]}/new"]})
        assert told.status == 400, told.body
        assert "nothing can be mounted in it with sandbox.private_programs" in told.json["cause"]
        assert told.json["remediation"] == "mount it elsewhere, such as at /data"


def test_a_file_takes_the_place_of_a_link(folder: Path) -> None:
    for target in ("/etc/localtime", "/etc/os-release", "/etc/mtab"):
        with Sandbox.create(embedded=True, mounts=[f"{folder}/file:{target}"]) as sandbox:
            assert sandbox.run(["cat", target]).text == "x"


def test_names_that_no_file_can_have_are_refused_before_anything_is_made(folder: Path) -> None:
    source = f"{folder}/folder"
    for target in (f"/{'n' * 255}", "/a" * 256):
        with Sandbox.create(embedded=True, mounts=[f"{source}:{target}"]) as sandbox:
            assert sandbox.run(["ls", target]).text == "inside\n"
    for target in (f"/{'n' * 256}", f"/{'é' * 128}", "/a" * 257):
        assert "is too long" in refused(mounts=[f"{source}:{target}"]).message
    assert "is no path" in refused(mounts=[f"{source}:/\ud800"]).message
    assert "is no path" in refused(mounts=[f"{folder}/\ud800:/m"]).message


@pytest.mark.parametrize("members", [(5, "/m", "ro"), ("/tmp", 5, "ro"), ("/tmp", "/m", None)])
def test_a_mount_of_something_else_than_text_is_an_error_of_ours(members: Any) -> None:
    assert "has a member that is no text" in refused(mounts=[Mount(*members)]).message


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sandboxes see such mounts")
@pytest.mark.parametrize("mode", ["ro", "rw", "cow"])
def test_that_mounts_beneath_it_are_left_out_is_told(folder: Path, mode: str) -> None:
    beneath = folder / "folder/beneath"
    beneath.mkdir()
    script = f"""
mount -t tmpfs tmpfs {beneath} && touch {beneath}/hidden
exec {sys.executable} -m agentd run -v -w {folder}/folder:{mode} -- ls beneath
"""
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran
    assert "idmapped, without what is mounted beneath it" in " ".join(ran.stderr.split())
