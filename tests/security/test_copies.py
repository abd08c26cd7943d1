"""Threat: what is copied out of a sandbox writes elsewhere, never ends, or is not what is there.

Controls: the agent makes the archive, and no program of the sandbox; the host's own extraction
follows nothing, makes everything anew beside the target, and puts it in place as a whole.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import WAIT, Daemon, fixture, until

from agentd.client.aio import AsyncSandbox
from agentd.client.sandbox import Sandbox
from agentd.model.errors import OperationFailed

daemon = fixture()

# Stops what the others in the sandbox run, and writes into what they write to, for ever.
FORGER = """
import os, signal
me = {os.getpid(), os.getppid(), 1}
print("up", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in me:
            try:
                os.kill(int(name), signal.SIGSTOP)
                fd = os.open(f"/proc/{name}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
                os.write(fd, b"PWNED" * 2000)
                os.close(fd)
            except OSError:
                pass
"""
# What "cp -f box:/workspace/out ." once wrote through: first the link, then a folder of its name.
LINKS = {
    "beside": "ln -s ../.ssh out/cache",
    "absolute": "ln -s /etc out/cache",
    "by another": "mkdir -p out/a/b; ln -s ../.. out/a/b/top; ln -s a/b/top/../.ssh out/cache",
    "by a chain": "mkdir -p out/a; ln -s .. out/a/up; ln -s a/up/.. out/cache",
}


@pytest.fixture
def box(daemon: Daemon) -> Iterator[str]:
    id_ = daemon.sandbox(ttl="5m")
    yield id_
    daemon.ask("DELETE", f"/v1/sandboxes/{id_}")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A folder of the caller's, whose neighbours nobody may touch."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "authorized_keys").write_text("mine")
    yield tmp_path
    assert (tmp_path / ".ssh" / "authorized_keys").read_text() == "mine"
    assert os.listdir(tmp_path / ".ssh") == ["authorized_keys"]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".agentd-")]


def inside(daemon: Daemon, box: str, script: str) -> None:
    body = {"cmd": ["sh", "-ec", script]}
    ran = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body).json
    assert ran["exit_code"] == 0, ran


def cp(daemon: Daemon, here: Path, *words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "agentd", "cp", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=here,
        env=os.environ | {"AGENTD_URL": daemon.url},
        timeout=WAIT,
        check=False,
    )


@pytest.mark.parametrize("way", LINKS)
def test_a_link_that_leads_out_is_refused_by_name(
    daemon: Daemon, box: str, here: Path, way: str
) -> None:
    inside(daemon, box, f"mkdir out; {LINKS[way]}")
    for words in (["."], ["./out"], ["-f", "."]):
        ran = cp(daemon, here, *words[:-1], f"{box}:/workspace/out", words[-1])
        assert ran.returncode != 0
        assert b"out/cache" in ran.stderr and b"leads out of the tree" in ran.stderr, ran.stderr
        assert os.listdir(here) == [".ssh"]


def test_links_that_stay_within_come_along(daemon: Daemon, box: str, here: Path) -> None:
    inside(daemon, box, "mkdir -p out/a; cd out; ln -s ../b a/up; ln -s a/../b x; ln -s no no")
    assert cp(daemon, here, f"{box}:/workspace/out", ".").returncode == 0
    found = {name: os.readlink(here / "out" / name) for name in ("a/up", "x", "no")}
    assert found == {"a/up": "../b", "x": "a/../b", "no": "no"}


def test_a_copy_does_not_go_through_what_an_earlier_one_left(
    daemon: Daemon, box: str, here: Path
) -> None:
    (here / "out").mkdir()
    (here / "out" / "cache").symlink_to("../.ssh")
    inside(daemon, box, "mkdir -p out/cache; echo PWNED > out/cache/authorized_keys")
    assert cp(daemon, here, "-f", f"{box}:/workspace/out", "out").returncode == 0
    assert not (here / "out" / "cache").is_symlink()
    (here / "out" / "link").symlink_to("../.ssh")
    inside(daemon, box, "cp out/cache/authorized_keys .")
    copied = f"{box}:/workspace/authorized_keys"
    assert cp(daemon, here, copied, "out/link").returncode != 0
    assert cp(daemon, here, "-f", copied, "out/link").returncode == 0
    assert (here / "out" / "link").read_text() == "PWNED\n"  # it is no link any more


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("mkfifo out/fifo", b"out/fifo is a fifo"),
        ("truncate -s 1P out/sparse || truncate -s 7T out/sparse", b"out/sparse"),
        ("d=out; for i in $(seq 300); do d=$d/x; done; mkdir -p $d", b"256 folders deep"),
    ],
)
def test_what_may_not_come_out_is_named_and_nothing_is_left(
    daemon: Daemon, box: str, here: Path, made: str, said: bytes
) -> None:
    # Much comes before it: the answer has long begun when that is found.
    inside(daemon, box, f"mkdir -p out/first; head -c 3000000 /dev/urandom > out/first/big; {made}")
    ran = cp(daemon, here, f"{box}:/workspace/out", ".")
    assert ran.returncode != 0
    assert said in ran.stderr and b"internal error" not in ran.stderr, ran.stderr
    assert os.listdir(here) == [".ssh"]


def test_holes_of_a_file_take_no_room_here_either(daemon: Daemon, box: str, here: Path) -> None:
    """A sandbox of 1 GiB has files of terabytes, which once were as many zeros on the host."""
    inside(daemon, box, "truncate -s 100M sparse; echo end >> sparse; truncate -s 65G large")
    assert cp(daemon, here, f"{box}:/workspace/sparse", "whole").returncode == 0
    copied = (here / "whole").stat()
    assert copied.st_size == (100 << 20) + 4 and copied.st_blocks * 512 < 1 << 20
    assert (here / "whole").read_bytes() == bytes(100 << 20) + b"end\n"

    # Nothing of what is too large is fetched: it would not even be begun.
    bounded = f"ulimit -f 1; exec {sys.executable} -m agentd cp {box}:/workspace/large large"
    ran = subprocess.run(
        ["bash", "-c", bounded], cwd=here, env=os.environ | {"AGENTD_URL": daemon.url},
        capture_output=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert b"large is over 64 GiB" in ran.stderr, ran.stderr
    assert sorted(os.listdir(here)) == [".ssh", "whole"]


def test_sockets_are_left_out_and_told(daemon: Daemon, box: str, here: Path) -> None:
    made = "import socket; socket.socket(socket.AF_UNIX).bind('out/listening')"
    inside(daemon, box, f'mkdir out; touch out/file; python3 -c "{made}"')
    ran = cp(daemon, here, f"{box}:/workspace/out", ".")
    assert ran.returncode == 0 and b"left out: 1 socket, as out/listening" in ran.stderr
    assert os.listdir(here / "out") == ["file"]


def test_no_special_bits_come_out(daemon: Daemon, box: str, here: Path) -> None:
    inside(daemon, box, "mkdir out; touch out/f; chmod 0777 out/f; chmod 2777 out || chmod 777 out")
    assert cp(daemon, here, f"{box}:/workspace/out", ".").returncode == 0
    assert cp(daemon, here, f"{box}:/workspace/out/f", "g").returncode == 0
    for name in ("out", "out/f", "g"):
        info = (here / name).stat()
        assert info.st_mode & 0o7777 == 0o755 and info.st_uid == os.getuid()


def test_a_hostile_program_neither_stops_nor_forges_it(
    daemon: Daemon, box: str, here: Path
) -> None:
    inside(daemon, box, "mkdir -p in/deep; head -c 8000000 /dev/urandom > in/deep/file")
    where = f"/v1/sandboxes/{box}"
    body = {"cmd": ["python3", "-uc", FORGER], "wait": False}
    command = daemon.ask("POST", f"{where}/exec", body).json["id"]
    output = f"{where}/processes/{command}/output?stream=stdout"
    until(lambda: b"up" in daemon.ask("GET", output).body)
    wanted = daemon.ask("GET", f"{where}/files?path=/workspace/in/deep/file").body
    assert cp(daemon, here, f"{box}:/workspace/in", "out").returncode == 0
    assert (here / "out" / "deep" / "file").read_bytes() == wanted
    assert cp(daemon, here, "out", f"{box}:/workspace/back").returncode == 0
    assert daemon.ask("GET", f"{where}/files?path=/workspace/back/deep/file").body == wanted
    assert daemon.ask("GET", f"{where}/processes/{command}").json["state"] == "running"


def test_it_is_no_command_with_an_output_limit(daemon: Daemon, here: Path) -> None:
    box = daemon.sandbox(output="1M", timeout="60s")
    inside(daemon, box, "mkdir out; head -c 20000000 /dev/urandom > out/big")
    assert cp(daemon, here, f"{box}:/workspace/out", ".").returncode == 0
    assert (here / "out" / "big").stat().st_size == 20_000_000
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")


def test_it_takes_no_tarfile(daemon: Daemon, box: str, here: Path) -> None:
    """Python before 3.11.4 has none that could be trusted, and later ones had holes."""
    inside(daemon, box, "mkdir out; echo 1 > out/f")
    script = "import sys; sys.modules['tarfile'] = None; from agentd.client.cli.main import main"
    for words in ([f"{box}:/workspace/out", "out"], ["out", f"{box}:/workspace/back"]):
        argv = [sys.executable, "-c", f"{script}; sys.exit(main(['cp', *sys.argv[1:]]))", *words]
        env = os.environ | {"AGENTD_URL": daemon.url}
        ran = subprocess.run(
            argv, cwd=here, env=env, capture_output=True, timeout=WAIT, check=False
        )
        assert ran.returncode == 0, ran.stderr
    assert (here / "out" / "f").read_text() == "1\n"


# --- whole or not at all ---


def _begun(daemon: Daemon, box: str, here: Path) -> "subprocess.Popen[bytes]":
    """A copy that is on its way: it cannot end, for the files are larger than it may have."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentd", "cp", f"{box}:/workspace/out", "out"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=here,
        env=os.environ | {"AGENTD_URL": daemon.url},
    )
    until(lambda: any((path / "new" / "slow").exists() for path in here.glob(".agentd-cp-*")))
    return process


@pytest.fixture
def slow(daemon: Daemon, box: str) -> str:
    """A tree of 60 GiB of zeros: its copy is on its way for as long as any test takes."""
    inside(daemon, box, "mkdir out; truncate -s 60G out/slow")
    return box


def test_killed_amid_it_the_next_one_clears_up(daemon: Daemon, slow: str, here: Path) -> None:
    process = _begun(daemon, slow, here)
    process.kill()
    process.communicate(timeout=WAIT)
    assert [name for name in os.listdir(here) if name.startswith(".agentd-cp-")]
    assert not (here / "out").exists()
    inside(daemon, slow, "rm out/slow; echo 1 > out/file")
    assert cp(daemon, here, f"{slow}:/workspace/out", ".").returncode == 0
    assert sorted(os.listdir(here)) == [".ssh", "out"]


def test_one_that_is_at_work_is_left_alone(daemon: Daemon, slow: str, here: Path) -> None:
    process = _begun(daemon, slow, here)
    assert cp(daemon, here, f"{slow}:/etc/passwd", "name").returncode == 0
    assert len(list(here.glob(".agentd-cp-*/new/slow"))) == 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(
    daemon: Daemon, slow: str, here: Path, number: signal.Signals
) -> None:
    process = _begun(daemon, slow, here)
    process.send_signal(number)
    process.communicate(timeout=WAIT)
    if number is signal.SIGTERM:  # ends it at once, as kill -9 does
        assert cp(daemon, here, f"{slow}:/etc/passwd", "out").returncode == 0
        (here / "out").unlink()
    assert os.listdir(here) == [".ssh"]


def test_a_sandbox_that_ends_amid_it_is_an_error(daemon: Daemon, slow: str, here: Path) -> None:
    process = _begun(daemon, slow, here)
    daemon.ask("DELETE", f"/v1/sandboxes/{slow}")
    errors = process.communicate(timeout=WAIT)[1]
    assert process.returncode not in (0, None)
    assert b"cut short" in errors and b"internal error" not in errors
    assert os.listdir(here) == [".ssh"]


# --- where it lands: the same both ways ---


def _names(daemon: Daemon, box: str, folder: str) -> set[str]:
    path = f"/v1/sandboxes/{box}/files/list?path={folder}"
    return {entry["name"] for entry in daemon.ask("GET", path).json}


def test_f_replaces_as_a_whole_and_without_it_nothing_is_touched(
    daemon: Daemon, box: str, here: Path
) -> None:
    (here / "dist").mkdir()
    (here / "dist" / "one").write_text("1")
    there = f"{box}:/workspace/dist"
    assert cp(daemon, here, "dist", there).returncode == 0
    assert cp(daemon, here, "-f", there, "./back").returncode == 0
    for folder in ("dist", "back"):
        (here / folder / "two").write_text("2")
    (here / "dist" / "one").unlink()

    refused = cp(daemon, here, "dist", there)
    assert refused.returncode != 0 and b"exists already" in refused.stderr
    assert _names(daemon, box, "/workspace/dist") == {"one"}
    assert cp(daemon, here, "-f", "dist", there).returncode == 0
    assert _names(daemon, box, "/workspace/dist") == {"two"}
    assert _names(daemon, box, "/workspace") == {"dist"}

    inside(daemon, box, "cd dist; mv two three")
    refused = cp(daemon, here, there, "./dist")
    assert refused.returncode != 0 and b"exists already" in refused.stderr
    assert os.listdir(here / "dist") == ["two"]
    for folder in ("dist", "back"):
        assert cp(daemon, here, "-f", there, f"./{folder}").returncode == 0
        assert os.listdir(here / folder) == ["three"]


def test_of_a_file_too(daemon: Daemon, box: str, here: Path) -> None:
    (here / "f").write_text("1")
    there = f"{box}:/workspace/f"
    assert cp(daemon, here, "f", there).returncode == 0
    assert cp(daemon, here, there, "g").returncode == 0
    (here / "f").write_text("2")
    for words in (("f", there), (there, "g"), ("f", f"{box}:/workspace/"), (there, ".")):
        refused = cp(daemon, here, *words)
        assert refused.returncode != 0 and b"exists already" in refused.stderr, words
    assert cp(daemon, here, "-f", "f", there).returncode == 0
    assert cp(daemon, here, "-f", there, "g").returncode == 0
    assert (here / "g").read_text() == "2"
    # A folder is not replaced by a file: it goes into it.
    inside(daemon, box, "mkdir d; touch d/kept")
    assert cp(daemon, here, "-f", "f", f"{box}:/workspace/d").returncode == 0
    assert _names(daemon, box, "/workspace/d") == {"f", "kept"}


@pytest.mark.parametrize("target", ["d/", "d", "d/."])
def test_into_a_folder_under_its_own_name(
    daemon: Daemon, box: str, here: Path, target: str
) -> None:
    inside(daemon, box, "mkdir d")
    for folder in ("tree", "d"):
        (here / folder).mkdir()
    (here / "tree" / "f").write_text("1")
    assert cp(daemon, here, "tree", f"{box}:/workspace/{target}").returncode == 0
    assert _names(daemon, box, "/workspace/d") == {"tree"}
    assert cp(daemon, here, f"{box}:/workspace/d/tree", target).returncode == 0
    assert (here / "d" / "tree" / "f").read_text() == "1"
    again = cp(daemon, here, "tree", f"{box}:/workspace/{target}")
    assert again.returncode != 0 and b"exists already" in again.stderr


def test_one_s_home_and_where_one_is_are_not_replaced(daemon: Daemon, box: str, here: Path) -> None:
    inside(daemon, box, "mkdir out")
    for target in (str(here), str(here.parent), f"{here}/../{here.name}"):
        ran = cp(daemon, here, "-f", f"{box}:/workspace/out", target)
        assert ran.returncode != 0 and b"is not replaced as a whole" in ran.stderr


def test_standard_input_and_output(daemon: Daemon, box: str, here: Path) -> None:
    data = os.urandom(3_000_000)
    env = os.environ | {"AGENTD_URL": daemon.url}
    argv = [sys.executable, "-m", "agentd", "cp"]

    def run(*words: str, data: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [*argv, *words], input=data, env=env, cwd=here, capture_output=True, timeout=WAIT,
            check=False,
        )  # fmt: skip

    assert run("-", f"{box}:/workspace/in", data=data).returncode == 0
    assert run(f"{box}:/workspace/in", "-").stdout == data
    refused = run("-", f"{box}:/workspace/in", data=b"other")
    assert refused.returncode != 0 and b"exists already" in refused.stderr
    assert run("-f", "-", f"{box}:/workspace/in", data=b"other").returncode == 0
    assert run(f"{box}:/workspace/in", "-").stdout == b"other"
    for words in (("-", f"{box}:/workspace/"), (f"{box}:/workspace", "-")):
        assert run(*words).returncode != 0
    assert os.listdir(here) == [".ssh"]


def test_standard_input_and_output_that_are_none(daemon: Daemon, box: str, here: Path) -> None:
    inside(daemon, box, "echo 1 > f")
    for ends, said in (
        (f"cp - {box}:/workspace/in <&-", "standard input is closed"),
        (f"cp {box}:/workspace/f - >&-", "standard output is closed"),
        (f"cp {box}:/workspace/f - >/dev/full", "could not be written here: No space left"),
    ):
        ran = subprocess.run(
            ["sh", "-c", f"{sys.executable} -m agentd {ends}"], cwd=here, capture_output=True,
            env=os.environ | {"AGENTD_URL": daemon.url}, timeout=WAIT, check=False, text=True,
        )  # fmt: skip
        assert ran.returncode != 0
        assert said in ran.stderr and "internal error" not in ran.stderr, ran.stderr
    assert _names(daemon, box, "/workspace") == {"f"}


def test_each_example_of_its_help(daemon: Daemon, box: str, here: Path) -> None:
    (here / "script.py").write_text("1")
    (here / "src").mkdir()
    (here / "src" / "f").write_text("1")
    (here / "dist").mkdir()
    (here / "dist" / "old").write_text("1")
    inside(daemon, box, "echo 1 > out.json; mkdir dist; echo 1 > dist/new")
    shown = cp(daemon, here, "--help").stdout.decode()
    examples = [line for line in shown.splitlines() if line.startswith("  agentd cp ")]
    assert len(examples) == 6
    for line in examples:
        words = line.replace("sbx-abcdefghijkl", box).split("   ")[0].split()[2:]
        ran = cp(daemon, here, *words)
        assert ran.returncode == 0, (line, ran.stderr)
    assert _names(daemon, box, "/workspace") == {"dist", "in.txt", "out.json", "script.py", "src"}
    assert _names(daemon, box, "/workspace/src") == {"f"}
    assert os.listdir(here / "dist") == ["new"]
    assert (here / "out.json").read_text() == "1\n"


# --- by the SDK, and as an ordinary user ---


def test_the_sdk_of_a_daemon(daemon: Daemon, here: Path) -> None:
    (here / "tree").mkdir()
    (here / "tree" / "f").write_text("1")
    with Sandbox.create(url=daemon.url) as box:
        assert box.files.upload(here / "tree", "/workspace/tree") == 1
        assert box.files.download("/workspace/tree", str(here / "back")) == 1
    assert (here / "back" / "f").read_text() == "1"

    async def both() -> None:
        async with await AsyncSandbox.create(url=daemon.url) as other:
            assert await other.files.upload(here / "tree" / "f", "/workspace/f") == 1
            assert await other.files.download("/workspace/f", here / "back", replace=True) == 1

    asyncio.run(both())
    assert (here / "back" / "f").read_text() == "1"


USER = """
import os, sys
from agentd import Sandbox
from agentd.model.errors import AgentdError
os.mkdir("ssh"); open("ssh/keys", "w").write("mine")
with Sandbox.create() as box:
    box.run(["sh", "-ec", "mkdir in bad; ln -s ../ssh bad/l"])
    box.files.write("/workspace/in/f", b"x" * 4000000)
    forger = box.start(["python3", "-uc", sys.argv[1]])
    next(iter(forger))
    print(box.files.download("/workspace/in", "in"), set(open("in/f").read()) == {"x"})
    print(box.files.upload("in", "/workspace/again"))
    try:
        box.files.download("/workspace/bad", ".")
    except AgentdError as error:
        print("leads out" in str(error))
    forger.kill()
print(sorted(os.listdir(".")), open("ssh/keys").read())
"""


def test_an_ordinary_user_s_sandbox_forges_nothing_either(as_user: Any) -> None:
    """Its programs have the user's own uid: they could open what the user's tar writes to."""
    ran = as_user.python("-c", USER, FORGER, timeout=100)
    lines = ran.stdout.decode().splitlines()
    assert lines[:3] == ["4000000 True", "4000000", "True"], ran.stderr.decode()
    assert "mine" in lines[3] and ".agentd" not in lines[3]
    with contextlib.suppress(FileNotFoundError):
        assert not list(Path(as_user.home).glob(".agentd-cp-*"))


def test_what_has_no_room_inside_is_told_and_leaves_nothing(daemon: Daemon, here: Path) -> None:
    box = daemon.sandbox(disk="8M")
    (here / "big").mkdir()
    (here / "big" / "f").write_bytes(os.urandom(40_000_000))
    ran = cp(daemon, here, "big", f"{box}:/workspace/big")
    assert ran.returncode != 0
    assert b"big/f: No space left on device" in ran.stderr, ran.stderr
    until(lambda: _names(daemon, box, "/workspace") == set())
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")


def test_where_a_user_may_not_read_or_write_is_told(as_user: Any) -> None:
    script = """
import os
from agentd import Sandbox
from agentd.model.errors import AgentdError
os.makedirs("in/sub"); open("in/sub/secret", "w"); os.chmod("in/sub/secret", 0)
os.mkdir("closed"); os.chmod("closed", 0o555)
with Sandbox.create() as box:
    box.files.write("/workspace/f", b"x")
    for copy in (
        lambda: box.files.upload("in", "/workspace/in"),
        lambda: box.files.upload("in/sub/secret", "/workspace/in"),
        lambda: box.files.download("/workspace/f", "closed/"),
        lambda: box.files.download("/workspace/f", "closed/f", replace=True),
        lambda: box.files.download("/workspace/f", "/proc/self/f"),
    ):
        try:
            copy()
        except AgentdError as error:
            print(error)
    print([entry.name for entry in box.files.list("/workspace")])
"""
    said = as_user.python("-c", script)
    lines = said.stdout.decode().splitlines()
    assert len(lines) == 6, said.stderr.decode()
    assert "in/sub/secret: Permission denied" in lines[0]
    assert "in/sub/secret cannot be read: Permission denied" in lines[1]
    assert all("cannot write to" in line for line in lines[2:5])
    assert lines[5] == "['f']"


@pytest.mark.parametrize("mode", ["rw", "cow"])
def test_a_folder_of_a_mounted_workspace_is_replaced(here: Path, mode: str) -> None:
    """An overlay cannot rename what lies beneath it."""
    (here / "w" / "dist" / "deep").mkdir(parents=True)
    (here / "w" / "dist" / "deep" / "old").write_text("1")
    (here / "dist").mkdir()
    (here / "dist" / "new").write_text("1")
    with Sandbox.create(workspace=f"{here}/w:{mode}") as box:
        box.files.upload(here / "dist", "/workspace/dist", replace=True)
        assert [entry.name for entry in box.files.list("/workspace/dist")] == ["new"]
        assert [entry.name for entry in box.files.list("/workspace")] == ["dist"]
        if mode == "cow":
            box.apply()
    assert os.listdir(here / "w" / "dist") == ["new"]


def test_a_folder_with_a_mount_in_it_is_not_replaced_inside(here: Path) -> None:
    """The mount went along, into a folder that nobody could remove then."""
    (here / "data").mkdir()
    (here / "data" / "kept").write_text("1")
    (here / "new").mkdir()
    with Sandbox.create(mounts=[f"{here}/data:/workspace/d/data:rw"]) as box:
        with pytest.raises(OperationFailed, match="has a mount point in it, /workspace/d/data"):
            box.files.upload(here / "new", "/workspace/d", replace=True)
        assert [entry.name for entry in box.files.list("/workspace")] == ["d"]
        assert [entry.name for entry in box.files.list("/workspace/d/data")] == ["kept"]


def test_killed_on_the_way_in_it_leaves_nothing_there(daemon: Daemon, box: str, here: Path) -> None:
    (here / "in").mkdir()
    with open(here / "in" / "slow", "wb") as file:
        file.truncate(60 << 30)  # holes, which stay holes: it takes time and no room
    process = subprocess.Popen(
        [sys.executable, "-m", "agentd", "cp", "in", f"{box}:/workspace/in"],
        stdin=subprocess.DEVNULL,
        cwd=here,
        env=os.environ | {"AGENTD_URL": daemon.url},
    )
    until(lambda: bool(_names(daemon, box, "/workspace")))
    assert all(name.endswith(".agentd") for name in _names(daemon, box, "/workspace"))
    process.kill()
    process.wait(WAIT)
    until(lambda: not _names(daemon, box, "/workspace"))
