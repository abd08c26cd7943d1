"""The keeper's children: a monitor or its helper, other programs, and a device, our own.

Each is born in namespaces of its own, goes into the machine's cgroup, is confined, and says on a
pipe which controls hold. Standard library, ``agentd.linux`` and ``agentd.vsock`` only.
"""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from agentd.linux import process
from agentd.linux.clone import Cloner
from agentd.sandbox.backends.vm.confine import Cell, confine
from agentd.vsock.device import Device

_ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
# Where a monitor's descriptors begin.
_FIRST_FD = 3
_ABOVE = 200
_MAX_REPORT = 64 << 10


class ChildError(Exception):
    """A child could not be started; the text says at which step."""


class Child(NamedTuple):
    pid: int
    pidfd: int
    controls: list[str]


def program_cell(request: dict[str, object], fds: list[int]) -> Cell:
    """Return what the request gives a program."""
    names = strings(request["names"])
    uid, gid, stage = request["uid"], request["gid"], request["stage"]
    return Cell(
        uid=uid if isinstance(uid, int) else None,
        gid=gid if isinstance(gid, int) else None,
        net=request["net"] is True,
        programs=True,
        readable=[fds[names.index(name)] for name in strings(request["readable"])],
        writable=[fds[names.index(name)] for name in strings(request["writable"])],
        stage=None if stage is None else fds[names.index(str(stage))],
    )


def start_program(
    cloner: Cloner, cell: Cell, request: dict[str, object], fds: list[int], output: int
) -> Child:
    """Descriptors are the named ones, then the cgroup's doors. Raises OSError and ChildError.

    ``output``, named "console" to it, is its standard output and error, too.
    """
    names = strings(request["names"])
    passed = [*fds[: len(names)], output]
    numbers = {name: _FIRST_FD + index for index, name in enumerate([*names, "console"])}
    argv = [_placed(word, numbers) for word in strings(request["argv"])]

    def run(report: int) -> None:
        _place(passed, report)
        os.execve(argv[0], argv, _ENVIRONMENT)  # noqa: S606  (its path is the host's choice)

    return _start(cloner, cell, fds[len(names) :], run)


def start_device(cloner: Cloner, cell: Cell, request: dict[str, object], fds: list[int]) -> Child:
    """``fds``: the vhost-user socket, the listener, the sockets that ports of the guest's lead to,
    as ``request`` lists these, and the doors. Raises OSError and ChildError."""
    ports = [integer(port) for port in _list(request["ports"])]
    count = 2 + len(ports)

    def run(_: int) -> None:
        process.set_dumpable(False)
        process.close_all_but({0, 1, 2, *fds[:count]})
        control, listener = (socket.socket(fileno=fd) for fd in fds[:2])
        places = {port: f"/proc/self/fd/{fd}" for port, fd in zip(ports, fds[2:count], strict=True)}
        Device(control, integer(request["cid"]), listener, guest_places=places).run()
        os._exit(0)

    return _start(cloner, cell, fds[count:], run)


def _start(cloner: Cloner, cell: Cell, doors: list[int], run: Callable[[int], None]) -> Child:
    reads, writes = os.pipe()
    try:
        pid, pidfd = cloner.clone(cell.flags)
        if pid == 0:
            os.close(reads)
            _become(cell, doors, run, writes)
    except BaseException:
        os.close(reads)
        raise
    finally:
        os.close(writes)
    # It ends with exec or with the child, whichever comes first.
    report = _read_all(reads)
    if "error" in report or "controls" not in report:
        os.close(pidfd)
        os.waitpid(pid, 0)
        raise ChildError(str(report.get("error", "it ended before it was ready")))
    return Child(pid, pidfd, strings(report["controls"]))


def _become(cell: Cell, doors: list[int], run: Callable[[int], None], pipe: int) -> NoReturn:
    report = fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 2 * _ABOVE)
    os.close(pipe)
    try:
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            for fd in doors:
                os.write(fd, b"0")
            controls = [*confine(cell), *(["cgroup"] if doors else [])]
            os.write(report, json.dumps({"controls": controls}).encode())
            run(report)
        except Exception as error:
            os.write(report, b"\n" + json.dumps({"error": str(error)}).encode())
    finally:
        os._exit(1)


def _place(passed: list[int], report: int) -> None:
    """The descriptors to 3, 4, ...; standard output and error to the last; nothing else stays."""
    high = [os.dup2(fd, _ABOVE + index) for index, fd in enumerate(passed)]
    for index, fd in enumerate(high):
        os.dup2(fd, _FIRST_FD + index)
    for number in (1, 2):
        os.dup2(_FIRST_FD + len(passed) - 1, number)
    process.close_all_but({0, 1, 2, *range(_FIRST_FD, _FIRST_FD + len(passed)), report})


def _placed(word: str, numbers: dict[str, int]) -> str:
    for name, number in numbers.items():
        word = word.replace(f"{{{name}}}", str(number))
    return word


def _read_all(fd: int) -> dict[str, object]:
    """The last line wins: an exec that failed comes after the controls."""
    data = b""
    try:
        while len(data) < _MAX_REPORT and (part := os.read(fd, _MAX_REPORT)):
            data += part
    finally:
        os.close(fd)
    lines = data.splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


def integer(value: object) -> int:
    if not isinstance(value, int):
        raise ChildError(f"{value!r} is not an integer")
    return value


def strings(value: object) -> list[str]:
    return [str(item) for item in _list(value)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
