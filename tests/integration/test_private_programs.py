"""The use that others make of the host's programs: inotify sees it, and not through overlays."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, running

from agentd.client.sandbox import Sandbox
from agentd.model.errors import Refused

# Watches folders, and tells of what was opened until a line comes in.
WATCH = """
import ctypes, os, select, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(os.O_NONBLOCK)
for folder in sys.argv[1:]:
    if libc.inotify_add_watch(fd, folder.encode(), 0x20) < 0:  # IN_OPEN
        sys.exit(f"{folder}: {os.strerror(ctypes.get_errno())}")
print("ready", flush=True)
sys.stdin.readline()
seen = set()
while select.select([fd], [], [], 0)[0]:
    data = os.read(fd, 1 << 16)
    while data:
        length = struct.unpack("=iIII", data[:16])[3]
        seen.add(data[16:16 + length].rstrip(b"\\0").decode())
        data = data[16 + length:]
print(sorted(seen & {"env", "debian_version", "passwd"}))
"""
PLACES = ("/usr/bin", "/etc")


@pytest.fixture(params=[False, True], ids=["shared", "private"])
def daemon(request: pytest.FixtureRequest) -> Iterator[tuple[Daemon, bool]]:
    private: bool = request.param
    config = f"[sandbox]\nprivate_programs = {str(private).lower()}\n"
    with running(config) as made:
        yield made, private


def test_others_use_of_programs_is_seen_only_where_they_are_shared(
    daemon: tuple[Daemon, bool],
) -> None:
    made, private = daemon
    with Sandbox.create(url=made.url) as one, Sandbox.create(url=made.url) as other:
        argv = ["/usr/bin/python3", "-I", "-c", WATCH, *PLACES]
        with one.start(argv, stdin=True) as watcher:
            seen = b""
            for chunk in watcher:
                seen += chunk.data
                if b"ready" in seen:
                    break
            Path("/usr/bin/env").read_bytes()
            other.run("cat /etc/passwd", check=True)
            watcher.write("\n")
            seen += b"".join(chunk.data for chunk in watcher)
        told = one.enforcement["mount_namespace"].detail
    assert seen.decode().split("\n")[1] == ("[]" if private else "['env', 'passwd']")
    assert ("behind overlays" in told) is private
    assert ("inotify" in told) is not private


def test_programs_work_and_cannot_be_changed(daemon: tuple[Daemon, bool]) -> None:
    made, _ = daemon
    with Sandbox.create(url=made.url) as sandbox:
        script = "getent passwd sandbox; ls /etc/ssl/certs | head -1; echo x > own; cat own"
        assert sandbox.run(script, check=True).text.startswith("sandbox:x:1000:")
        for path in ("/usr/bin/new", "/etc/new", "/new", "/etc/passwd", "/usr/bin/env"):
            assert sandbox.run(f"echo > {path}").exit_code != 0, path
        python = "import json, ssl, sqlite3; print(ssl.OPENSSL_VERSION[:7])"
        assert sandbox.run(["python3", "-c", python], check=True).text == "OpenSSL\n"


def test_a_wall_that_shows_the_hosts_own_files_is_refused() -> None:
    config = "[sandbox]\nprivate_programs = true\nminimum = 'process'\n"
    with running(config) as made, pytest.raises(Refused, match="private_programs"):
        Sandbox.create(url=made.url, backend="landlock")
