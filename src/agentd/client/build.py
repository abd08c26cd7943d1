"""What callers write, made into the model's values; every mistake is one InvalidInput."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import Mount, parse_mount, parse_workspace
from agentd.model.spec import ExecRequest, Pty, SandboxSpec
from agentd.model.units import parse_duration, parse_size

Size: TypeAlias = str | int | None
Time: TypeAlias = str | float | None
Command: TypeAlias = str | Sequence[str]

NETS = ("none", "host")
USERS = ("root", "sandbox")
_MAX_ID = (1 << 32) - 2
_MAX_COUNT = 1 << 22  # the kernel's own ceiling of pids (PID_MAX_LIMIT, 64-bit)


def sandbox_spec(
    *,
    isolation: str | IsolationLevel | None = None,
    backend: str | None = None,
    memory: Size = None,
    cpus: float | str | None = None,
    pids: int | str | None = None,
    disk: Size = None,
    open_files: int | str | None = None,
    output: Size = None,
    timeout: Time = None,
    workspace: str | os.PathLike[str] | None = None,
    mounts: Iterable[str | Mount] = (),
    net: str = "none",
    user: str | int | None = None,
    env: Mapping[str, str] | None = None,
) -> SandboxSpec:
    """The spec of a sandbox. Raises InvalidInput, naming what is wrong and how to mend it."""
    return SandboxSpec(
        isolation=_level(isolation, backend),
        backend=backend,
        mounts=_mounts(workspace, mounts),
        net=_one_of("network", net, NETS),
        limits=Limits(
            memory=_size(memory, "memory"),
            cpus=None if cpus is None else _cpus(cpus),
            pids=None if pids is None else _count(pids, "pids"),
            disk=_size(disk, "disk"),
            open_files=None if open_files is None else _count(open_files, "open files"),
            output=_size(output, "output"),
            timeout=_time(timeout),
        ),
        user=None if user is None else _user(str(user)),
        env=environment(env),
    )


def exec_request(
    cmd: Command,
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bool = False,
    pty: Pty | None = None,
    timeout: Time = None,
    output_limit: int | None = None,
) -> ExecRequest:
    """A command; a plain string is run by ``sh -c``. Raises InvalidInput."""
    argv = ("sh", "-c", cmd) if isinstance(cmd, str) else tuple(cmd)
    if not argv or not argv[0] or any(not isinstance(a, str) or "\0" in a for a in argv):
        raise InvalidInput(
            f"command {cmd!r} cannot be run",
            remediation="give a program and its arguments, all text without NUL",
        )
    if cwd is not None and (not cwd or "\0" in cwd):
        raise InvalidInput(
            f"working directory {cwd!r} is not a path", remediation="write it as /workspace"
        )
    return ExecRequest(
        argv=argv,
        cwd=cwd,
        env=environment(env),
        stdin=stdin,
        pty=pty,
        timeout=_time(timeout),
        output_limit=output_limit,
    )


def environment(env: Mapping[str, str] | None) -> dict[str, str]:
    for name, value in (env or {}).items():
        check_variable(name, value)
    return dict(env or {})


def check_variable(name: str, value: str) -> None:
    if not name or "=" in name or "\0" in name or "\0" in value:
        raise InvalidInput(
            f"environment variable {name!r} is not usable", remediation="write it as NAME=value"
        )


def parse_variable(text: str) -> tuple[str, str]:
    """``NAME=value``; a bare ``NAME`` takes the caller's own value."""
    name, equals, value = text.partition("=")
    if not equals:
        if name not in os.environ:
            raise InvalidInput(
                f"environment variable {name!r} is not set here",
                remediation=f"write {name or 'NAME'}=value",
            )
        value = os.environ[name]
    check_variable(name, value)
    return name, value


def parse_env_file(path: str) -> dict[str, str]:
    """``NAME=value`` a line, shell quotes allowed; blank lines and ``#`` lines are skipped."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidInput(
            f"env file {path!r} cannot be read: {reason}", remediation="give a readable file"
        ) from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ")
        if text and not text.startswith("#"):
            name, value = _env_line(text, path, number)
            found[name] = value
    return found


def _env_line(text: str, path: str, number: int) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    try:
        words = shlex.split(value) if value[:1] in ("'", '"') else [value]
    except ValueError:
        words = []
    if not equals or len(words) != 1:
        raise InvalidInput(
            f"{path}:{number} is not a variable: {text!r}", remediation="write it as NAME=value"
        )
    check_variable(name.strip(), words[0])
    return name.strip(), words[0]


def _level(isolation: str | IsolationLevel | None, backend: str | None) -> IsolationLevel:
    if isinstance(isolation, IsolationLevel):
        return isolation
    if isolation is not None:
        return IsolationLevel.parse(isolation)
    # Naming a wall is asking for what it gives; naming nothing is asking for the default.
    return SandboxSpec().isolation if backend is None else IsolationLevel.NONE


def _mounts(
    workspace: str | os.PathLike[str] | None, mounts: Iterable[str | Mount]
) -> tuple[Mount, ...]:
    found = [parse_workspace(os.fspath(workspace))] if workspace is not None else []
    found += [mount if isinstance(mount, Mount) else parse_mount(mount) for mount in mounts]
    for mount in found:
        if not os.path.exists(mount.source):
            raise InvalidInput(
                f"mount source {mount.source!r} does not exist",
                remediation="create it, or correct the path",
            )
    if workspace is not None and not os.path.isdir(found[0].source):
        raise InvalidInput(
            f"workspace {found[0].source!r} is not a directory", remediation="give a directory"
        )
    targets = [mount.target for mount in found]
    for target in targets:
        if targets.count(target) > 1:
            raise InvalidInput(
                f"two mounts have the target {target!r}", remediation="give each its own"
            )
    return tuple(found)


def _size(value: Size, what: str) -> int | None:
    return None if value is None else parse_size(value, what)


def _time(value: Time) -> float | None:
    return None if value is None else parse_duration(value, "timeout")


def _cpus(value: float | str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= 4096:
        raise InvalidInput(f"cpus {value!r} is not a number of cores", remediation="write 0.5 or 2")
    return number


def _count(value: int | str, what: str) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= _MAX_COUNT:
        raise InvalidInput(
            f"{what} {value!r} is not a count", remediation=f"give a number from 1 to {_MAX_COUNT}"
        )
    return int(text)


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidInput(
            f"unknown {what} {value!r}", remediation=f"use one of: {', '.join(allowed)}"
        )
    return value


def _user(value: str) -> str:
    if value in USERS or (value.isascii() and value.isdigit() and int(value[:11]) <= _MAX_ID):
        return value
    raise InvalidInput(
        f"user {value!r} is not known inside a sandbox", remediation="use root, sandbox or a uid"
    )
