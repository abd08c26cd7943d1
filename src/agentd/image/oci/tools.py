"""skopeo and umoci, which fetch images and unpack layers: each run in a cell of its own."""

import base64
import contextlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from agentd.image.model import ImageError
from agentd.image.oci import cell
from agentd.image.oci.work import size_of
from agentd.linux import python
from agentd.model.errors import Unavailable
from agentd.model.units import readable_size

if TYPE_CHECKING:
    from agentd.image.oci.network import FetchNetwork

Say = Callable[[str], None]
#: A program -> its package: of the same name on Debian, Fedora and Arch.
PACKAGES = {"skopeo": "skopeo", "umoci": "umoci"}
#: Of machines alone.
_OF_MACHINES = {"mkfs.erofs": "erofs-utils"}
_PATH = "/usr/bin:/bin:/usr/local/bin"
_PANICKED = 2  # what a program in Go ends with
_FATAL = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')
_CHECKED = 1.0  # seconds
_TOLD = 64 << 10  # bytes of what it printed that are kept


class ToolPanicked(ImageError):
    """A program gave up amid what it did: why, it may not have said."""


def find(name: str) -> str:
    """Return the program's path. Raises Unavailable with the commands that install it."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise Unavailable(f"{name} is not installed, and images need it", remediation=fix(name))
    return path


def fix(name: str) -> str:
    package = (PACKAGES | _OF_MACHINES)[name]
    return (
        f"apt-get install {package} (Debian, Ubuntu), dnf install {package} (Fedora) or "
        f"pacman -S {package} (Arch)"
    )


def run(
    words: Sequence[str],
    *,
    work: str,
    reads: Mapping[str, str] = {},
    files: Mapping[str, bytes] = {},
    net: "FetchNetwork | None" = None,
    seconds: float,
    say: Say | None = None,
    file_size: int | None = None,
    most: int | None = None,
) -> None:
    """Run a program in a cell: it writes in ``work``, which it sees at ``cell.WORK``.

    ``reads`` is what else it may read, a path inside -> a path of the host; a file has a place in
    /dev. ``files`` are made inside. Without ``net`` it reaches nobody. No file that it writes is
    larger than ``file_size``, in bytes; where all take more than ``most`` it is ended, within
    moments. ``say`` is told each line that it prints. Nothing of it runs any more when this
    returns. Raises Unavailable, ImageError with what the program said last.
    """
    program = find(words[0])
    config = {
        "parent": os.getpid(),
        "argv": [program, *words[1:]],
        "work": work,
        "reads": dict(reads),
        "files": {path: base64.b64encode(data).decode() for path, data in files.items()},
        "env": {"PATH": _PATH, "HOME": "/tmp", "TMPDIR": cell.WORK, "LC_ALL": "C"}
        | ({} if net is None else net.env),
        "host_net": net is not None and net.is_hosts,
        "entrances": [] if net is None else [[each.address, each.port] for each in net.entrances],
        "file_size": file_size,
    }
    if cell.own_user():
        os.chown(work, cell.USER, cell.USER)

    def check() -> None:
        if most is not None and size_of(work) > most:
            raise ImageError(
                f"{words[0]} wrote more than {readable_size(most)}, the most for this image",
                remediation="pull it with a larger --max-size, if it is what you want",
            )

    with contextlib.ExitStack() as stack:
        controls = []
        if config["entrances"] and net is not None:
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            stack.enter_context(net.served(ours))
            controls.append(theirs.fileno())
        process = _start(controls)
        try:
            told = _talk(
                process,
                json.dumps({**config, "controls": controls}).encode(),
                *(words[0], seconds, say, check),
            )
        except BaseException:
            process.kill()
            raise
        finally:
            _drain(process)
    if process.returncode:
        if file_size is not None and _ends(told, "file too large"):
            largest = readable_size(file_size)
            raise ImageError(
                f"the image has a layer larger than the {largest} that one may have",
                remediation="use another image: what is built so is not meant to be run",
            )
        raise _failed(words[0], process.returncode, told, work)


def _start(fds: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Start a cell, which has these descriptors."""
    return subprocess.Popen(
        python.command(cell.__name__),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=python.environment(),
        cwd="/",
        pass_fds=fds,
    )


def _talk(
    process: "subprocess.Popen[bytes]",
    config: bytes,
    name: str,
    seconds: float,
    say: Say | None,
    check: Callable[[], None],
) -> str:
    """Hand over the config, and read what is printed until its end; the last of it. ``check`` is
    called every second."""
    assert process.stdin is not None and process.stdout is not None  # noqa: S101  (both are pipes)
    with contextlib.suppress(BrokenPipeError):  # its end says why
        process.stdin.write(config)
        process.stdin.close()
    deadline = time.monotonic() + seconds
    kept, line, checked = b"", b"", time.monotonic()
    while True:
        now = time.monotonic()
        if now - checked >= _CHECKED:
            check()
            checked = now
        left = deadline - now
        if left > 0 and not select.select([process.stdout], [], [], min(left, _CHECKED))[0]:
            continue
        if left <= 0:
            raise ImageError(
                f"{name} took more than {seconds:g} s",
                remediation="try again, or give it longer: agentd image pull --timeout 2h",
            )
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            break
        kept = (kept + data)[-_TOLD:]
        *lines, line = (line + data).split(b"\n")
        line = line[-_TOLD:]
        if say is not None:
            for each in lines:
                say(each.decode("utf-8", "replace").strip())
    return kept.decode("utf-8", "replace")


def _drain(process: "subprocess.Popen[bytes]") -> None:
    """Until nobody holds the pipe any more: the kernel ends the namespace with the cell."""
    if process.stdout is not None:
        with process.stdout as pipe:
            while os.read(pipe.fileno(), 1 << 16):
                pass
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    process.wait()


def _ends(told: str, error: str) -> bool:
    """Return whether what it printed ends with this error of the system. What is further in front,
    with a colon behind, is another's: a file in an image may be called so."""
    return re.search(rf"{error}[^:]*\Z", told, re.IGNORECASE) is not None


def _failed(name: str, code: int, told: str, work: str) -> ImageError:
    # Of a program that logs, its last message, without what is around it.
    fatal = _FATAL.findall(told)
    said = fatal[-1].replace('\\"', '"') if fatal else told
    said = " ".join(said.split())[-600:]
    if code == cell.NOT_BUILT:  # ENOSPC is of namespaces, too
        return ImageError(
            f"{name} cannot be shut in here, and does not run otherwise",
            cause=said,
            remediation="agentd doctor says what the namespace level lacks on this machine",
        )
    if _ends(told, "no space left on device"):
        return ImageError(
            f"there is no room for the image in {work}",
            cause=said,
            remediation="free some: agentd image prune; or set XDG_CACHE_HOME to a larger disk",
        )
    if code == _PANICKED and "panic: " in told:
        return ToolPanicked(f"{name} failed by itself", cause=said)
    return ImageError(f"{name} failed (exit code {code})", cause=said)
