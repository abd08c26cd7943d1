"""The agent with an interpreter of its own, in a root that has busybox and nothing else."""

import contextlib
import glob
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import oci

from agentd.model.spec import ExecRequest
from agentd.transport.guest import Guest

MOST = 14_000_000  # bytes
PATIENCE = 300
SOURCE = Path(__file__).parents[2] / "src"
BUNDLE = [sys.executable, "-m", "agentd", "guest", "--json", "--bundle"]
LEFT = (".new-", ".old-")


def environment(cache: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(SOURCE)}


def bundled(path: Path, cache: Path) -> dict[str, object]:
    """What the command says."""
    done = subprocess.run(
        [*BUNDLE, path], env=environment(cache), capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def root(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No Python, no libc, no loader, no /proc; and what a hostile image has for those of others."""
    root = tmp_path_factory.mktemp("root")
    for name, data in {
        "etc/ld.so.preload": b"/lib/libc.so.6\n",
        "lib/libc.so.6": b"no library",
        "lib/x86_64-linux-gnu/libc.so.6": b"no library",
        "usr/lib/python3.13/os.py": b"raise SystemExit(9)",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "dev").mkdir()
    (root / "dev/null").touch()
    with tarfile.open(fileobj=io.BytesIO(oci.busybox())) as layer:
        # Python 3.11.2, of Debian 12, has no filters.
        filters: Any = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
        layer.extractall(root, **filters)  # noqa: S202  our own
    bundled(root / "agent", cache)
    return root


def chrooted(root: Path, *words: str, program: str = "/agent/agentd-guest") -> list[str]:
    """As root by chroot(1) alone; an ordinary user needs a namespace for that."""
    alone = [] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user"]
    return ["env", "-i", *alone, "/usr/sbin/chroot", str(root), program, *words]


@pytest.fixture
def guest(root: Path) -> Iterator[Guest]:
    process = subprocess.Popen(
        chrooted(root, "--listen", "unix:/agent.sock"), stderr=subprocess.PIPE, text=True
    )
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.terminate)
        assert process.stderr is not None
        stack.enter_context(process.stderr)
        # The loader says here what it makes of the root's files.
        assert process.stderr.readline().startswith("agentd-guest: listening on unix:")

        def connect() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(root / "agent.sock"))
            return sock

        guest = Guest(connect, passes_descriptors=False)
        stack.callback(guest.close)
        yield guest


def run(guest: Guest, *argv: str, stdin: bytes | None = None) -> bytes:
    request = ExecRequest(argv, cwd="/", timeout=PATIENCE)
    end, out, err, _ = guest.run(request, stdin=stdin)
    assert (end.exit_code, err) == (0, b"")
    return out


def test_it_serves_in_a_root_of_busybox_alone(guest: Guest) -> None:
    assert guest.call("sys.ping") is not None
    assert run(guest, "/bin/sh", "-c", "cat; echo out", stdin=b"in ") == b"in out\n"
    guest.files.write("/made/by/it", b"content", parents=True)
    assert guest.files.read("/made/by/it") == b"content"
    assert b"".join(guest.files.read_tar("/made"))
    assert [entry.path for entry in guest.files.list("/made")]
    guest.files.remove("/made", recursive=True)


def test_its_interpreter_is_not_in_the_environment_of_commands(guest: Guest) -> None:
    lines = run(guest, "/bin/env").decode().splitlines()
    assert {line.partition("=")[0] for line in lines} <= {"PATH"}, lines


def test_it_takes_the_place_of_files_alone(root: Path, cache: Path, tmp_path: Path) -> None:
    """``root``: what it is made of is at hand."""
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "link.tar").symlink_to("fifo.tar")
    for name in ("fifo.tar", "link.tar"):
        command = [*BUNDLE, tmp_path / name]
        done = subprocess.run(command, env=environment(cache), capture_output=True, check=False)
        assert done.returncode == 2 and b"it is no file" in done.stdout + done.stderr
    assert (tmp_path / "fifo.tar").is_fifo() and (tmp_path / "link.tar").is_symlink()


def test_the_first_protocol_is_spoken_too(root: Path) -> None:
    request = b'{"command":"/bin/pwd"}\n'
    done = subprocess.run(
        chrooted(root, "--listen", "stdio"),
        input=request,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout == b'{"exit_code":0,"stdout":"Lwo=","stderr":"","error":null}\n', done
    assert re.fullmatch(rb"(agentd-guest: [^\n]+\n)+", done.stderr), done.stderr


def test_it_is_called_by_links_and_as_the_first_agent(root: Path) -> None:
    (root / "sbin").mkdir(exist_ok=True)
    for name, target in {
        "agentd-guest": "../agent/agentd-guest",
        "another": "/sbin/agentd-guest",
        "fc-guest-agent": "another",
    }.items():
        (root / "sbin" / name).symlink_to(target)
    for name in ("agentd-guest", "another"):
        words = chrooted(root, "--version", program=f"/sbin/{name}")
        assert subprocess.check_output(words, timeout=PATIENCE).startswith(b"agentd-guest ")
    # It looks at no argument.
    words = chrooted(root, "--version", program="/sbin/fc-guest-agent")
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        process.terminate()
    # There may be no vsock here, or somebody at its port.
    assert said[0] == b"fc-guest-agent: Starting...\n"
    assert re.match(rb"fc-guest-agent: (Listening on vsock port 5000|no vsock here)", said[1])


def test_an_archive_has_the_same_each_time(root: Path, cache: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    told = bundled(first, cache)
    assert bundled(second, cache)["sha256"] == told["sha256"]
    assert first.read_bytes() == second.read_bytes()
    size = told["bytes"]
    assert isinstance(size, int) and size <= MOST
    with tarfile.open(first) as archive:
        names = {info.name for info in archive if info.isfile()}
        assert all(info.mode & 0o022 == 0 and info.uid == 0 for info in archive)
    there = {f"agentd-guest/{path.relative_to(root / 'agent')}" for path in root.glob("agent/**/*")}
    assert names == {name for name in there if (root / f"agent{name[12:]}").is_file()}


def test_a_directory_that_holds_something_is_left_alone(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = subprocess.run(
        [*BUNDLE, tmp_path],
        env=environment(cache),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert b"give a new directory" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def runtimes(cache: Path) -> list[Path]:
    return [path for path in (cache / "agentd/runtime").iterdir() if path.is_dir()]


def test_it_is_made_once_however_many_begin_and_is_mended(tmp_path: Path) -> None:
    def begin(number: int) -> "subprocess.Popen[bytes]":
        argv = [*BUNDLE, str(tmp_path / f"out{number}")]
        return subprocess.Popen(argv, env=environment(tmp_path), stdout=subprocess.PIPE)

    # One that is killed in the middle of it leaves nothing that counts.
    with begin(0) as killed:
        folder = tmp_path / "agentd/runtime"
        end = time.monotonic() + PATIENCE
        while not glob.glob(f"{folder}/.new-*/lib") and killed.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name[:5] for path in runtimes(tmp_path)] == [".new-"]

    both = [begin(1), begin(2)]
    told = [json.loads(process.communicate(timeout=PATIENCE)[0])["sha256"] for process in both]
    assert [path.name for path in runtimes(tmp_path)] == list(set(told))

    damaged = runtimes(tmp_path)[0] / "bin/python3"
    whole = damaged.read_bytes()
    damaged.write_bytes(bytes(len(whole)))
    bundled(tmp_path / "out3", tmp_path)
    assert (tmp_path / "out3/bin/python3").read_bytes() == whole
    assert not [path for path in folder.iterdir() if path.name.startswith(LEFT[0])]


def others() -> list[str]:
    """An interpreter of each supported version, other than this one; outside of /usr first."""
    found: dict[str, str] = {}
    for version in ("3.11", "3.12", "3.13"):
        places = sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python3")))
        places += [path for path in (f"/usr/bin/python{version}",) if os.path.exists(path)]
        if places and not os.path.samefile(places[0], sys.executable):
            found[version] = places[0]
    return list(found.values())


@pytest.mark.parametrize("python", others())
def test_any_python_can_be_taken_along(python: str, root: Path, tmp_path: Path) -> None:
    out = root / "other"
    argv = [python, "-m", "agentd", "guest", "--bundle", str(out)]
    done = subprocess.run(
        argv, env=environment(tmp_path), capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    try:
        files = [path for path in out.glob("**/*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= MOST
        # Read at once: but for what the interpreter loads before, no module is a file of its own.
        assert not {"agentd", "guest", "json", "re"} & {path.parent.name for path in files}
        argv = [word.replace("/agent/", "/other/") for word in chrooted(root, "--listen", "stdio")]
        done = subprocess.run(
            argv,
            input=b'{"command":"/bin/pwd"}\n',
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.stdout == b'{"exit_code":0,"stdout":"Lwo=","stderr":"","error":null}\n', done
    finally:
        subprocess.run(["rm", "-rf", str(out)], check=True)
