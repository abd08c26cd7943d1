"""Trees of files over a real connection."""

import os
import socket
from pathlib import Path
from typing import Any

from agentd.guest import wire

COUNT = 5000


def most_memory(pid: int) -> int:
    """The most that it ever held, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def deep(top: Path) -> int:
    """A folder whose path is some 3000 bytes."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(12):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def test_sockets_by_the_thousand_hold_up_nobody_and_fill_no_memory(
    remote: Any, client: Any, tmp_path: Path
) -> None:
    folder = deep(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{folder}/s")
    for number in range(COUNT):
        os.link("s", f"{number}", src_dir_fd=folder, dst_dir_fd=folder)
    os.close(folder)
    client.run("true")
    held = most_memory(remote.pid)
    asked = ({"op": "fs.tar_read", "path": str(tmp_path)}, {"op": "sys.ping"})
    frames = [wire.encode_json(wire.REQUEST, 8 + n, fields) for n, fields in enumerate(asked)]
    client.sock.sendall(b"".join(frames))
    client.wait(9)
    assert not client.events[8], "all of it was read before anybody else had a turn"
    assert client.wait(8)["count"] == COUNT + 14
    assert most_memory(remote.pid) - held < 4 << 20
