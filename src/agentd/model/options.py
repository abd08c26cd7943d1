"""What callers write, made into the model's values; every mistake is one InvalidInput. No I/O."""

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TypeAlias, TypedDict, Unpack

import msgspec

from agentd.model.control import check_window
from agentd.model.egress import RESTRICTED, Net, cassette, network, rules_of
from agentd.model.errors import InvalidInput, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import Mount, asked_mounts
from agentd.model.packages import Packages, check_place, packages_of
from agentd.model.secret import SecretOption, asked_secrets, merged, opened
from agentd.model.spec import (
    DEFAULT_IMAGE,
    IMAGE_NAME,
    RUNTIME_NAME,
    ExecLimits,
    ExecRequest,
    Pty,
    SandboxSpec,
)
from agentd.model.units import parse_duration, parse_size, readable_size

Size: TypeAlias = str | int | None
Time: TypeAlias = str | float | None
Command: TypeAlias = str | Sequence[str]

USERS = ("root", "sandbox")
_OF_A_DAEMON = ("labels", "ttl", "wait", "name", "idle_timeout", "on_idle")
_MAX_ID = (1 << 32) - 2
_MAX_NUMBER = (1 << 63) - 1
# What the agent itself takes, before any command of the sandbox does.
MIN_MEMORY = 1 << 20
MIN_OPEN_FILES = 16
#: Of the sandbox's own directories, before a command writes anything.
MIN_DISK = 64 << 10
_MAX_COUNT = 1 << 22  # the kernel's own ceiling of pids (PID_MAX_LIMIT, 64-bit)


class SandboxOptions(TypedDict, total=False):
    """The options of a sandbox; None, or nothing, takes the default.

    ``isolation`` is the least that will do: "namespace" unless a ``backend`` is named. Sizes are
    bytes or "256M", times seconds or "2s"; ``workspace`` is "PATH[:ro|rw|cow]", a mount
    "SRC:DST[:ro|rw]", a volume "NAME:DST[:ro|rw]". ``timeout`` and ``output`` bound each command.
    """

    isolation: str | IsolationLevel | None
    backend: str | None
    runtime: str | None  # the OCI runtime that builds it, of a wall that has several
    memory: Size
    cpus: float | str | None
    pids: int | str | None
    disk: Size
    open_files: int | str | None  # of each process
    output: Size
    timeout: Time
    workspace: str | os.PathLike[str] | None
    mounts: Iterable[str | Mount] | None
    volumes: Iterable[str] | None
    net_bytes: Size  # over a network of rules, in all; and a second:
    net_rate: Size
    net: Net  # "none", "host", or the rules of what it may reach: "pypi,api.example.com"
    secrets: SecretOption  # that it uses and never has: "TOKEN@api.example.com"
    user: str | int | None  # "root", "sandbox" or a uid inside
    writable: bool | None  # all of the root, and not some places only
    env: Mapping[str, str] | None  # for every command
    image: str | None  # what it starts of: an OCI image, or a machine image
    packages: Packages  # of the index, for its Python: "numpy,pandas", or a list


class ExecOptions(TypedDict, total=False):
    """The options of a command; a plain string as command is run by ``sh -c``."""

    cwd: str | None  # relative to the workspace
    env: Mapping[str, str] | None
    timeout: Time
    limits: ExecLimits | None


def sandbox_spec(**options: Unpack[SandboxOptions]) -> SandboxSpec:
    """Return the spec of a sandbox. Raises InvalidInput, naming what is wrong and the fix."""
    check_names(options, SandboxOptions)
    cpus, pids, open_files = options.get("cpus"), options.get("pids"), options.get("open_files")
    user, image = options.get("user"), options.get("image")
    secrets = tuple(asked.binding for asked in asked_secrets(options.get("secrets")))
    net, egress = opened(*network(options.get("net")), secrets)
    packages = packages_of(options.get("packages"))
    mounts = asked_mounts(options.get("workspace"), options.get("mounts"), options.get("volumes"))
    if packages:
        check_place(mounts)
    return SandboxSpec(
        isolation=_level(options.get("isolation"), options.get("backend")),
        backend=options.get("backend"),
        runtime=_runtime(options.get("runtime")),
        mounts=mounts,
        net=net,
        egress=egress,
        secrets=secrets,
        limits=Limits(
            memory=_at_least(options.get("memory"), "memory", MIN_MEMORY),
            cpus=None if cpus is None else _cpus(cpus),
            pids=None if pids is None else _count(pids, "pids"),
            disk=_at_least(options.get("disk"), "disk", MIN_DISK),
            open_files=None if open_files is None else _open_files(open_files),
            output=_size(options.get("output"), "output"),
            timeout=_time(options.get("timeout")),
            net_bytes=_of_rules(net, options.get("net_bytes"), "net_bytes"),
            net_rate=_of_rules(net, options.get("net_rate"), "net_rate"),
        ),
        user=None if user is None else _user(str(user)),
        writable=_flag(options.get("writable"), "writable"),
        env=environment(options.get("env")),
        image=DEFAULT_IMAGE if image is None else _image(image),
        packages=packages,
    )


def require_rules(spec: SandboxSpec) -> None:
    """Raises Refused where its network is none of rules."""
    if spec.net != RESTRICTED:
        raise Refused(
            f"the sandbox has the network {spec.net}, which has no rules",
            remediation="create it with rules, as --net pypi",
        )


def with_rules(spec: SandboxSpec, net: Net) -> SandboxSpec:
    """Return it with other rules of its network, which is recorded or replayed as before. Raises
    InvalidInput where they are none, or say otherwise; Refused where its network has none."""
    rules = rules_of(net)
    require_rules(spec)
    word, asked = cassette(spec.egress), cassette(rules)
    if word and not rules:
        rules = (word,)
    elif word != asked:
        said = f"goes on to {word}" if word else f"was not made to {asked}"
        raise InvalidInput(
            f"the sandbox {said} what it asks",
            remediation=f"begin its rules with {word}" if word else f"make one with {asked}",
        )
    return msgspec.structs.replace(spec, egress=rules)


def restored_spec(kept: SandboxSpec, **options: Unpack[SandboxOptions]) -> SandboxSpec:
    """Return the spec of a sandbox from a snapshot, whose machine is given.

    ``env``, ``timeout`` and ``output`` may be chosen anew, and the rules of a restricted network
    and the secrets that are used there.
    Raises InvalidInput for what may not.
    """
    for name in ("net_bytes", "net_rate"):
        if options.get(name) is not None:
            raise _kept(name)
    asked, nothing = sandbox_spec(**options), SandboxSpec()
    if asked.backend is None and options.get("isolation") is None:
        asked = msgspec.structs.replace(asked, isolation=kept.isolation)
    free = {"isolation", "backend", "env", "limits", "secrets"}
    egress, secrets = kept.egress, merged(kept.secrets, asked.secrets)
    if asked.net == kept.net == RESTRICTED:
        free |= {"net", "egress"}
        egress = asked.egress if options.get("net") not in (None, "none") else egress
        egress = opened(kept.net, egress, secrets)[1]
    limits = msgspec.structs.asdict(asked.limits)
    anew = {name: limits.pop(name) for name in ("timeout", "output")}
    fixed = {name: getattr(asked, name) for name in asked.__struct_fields__ if name not in free}
    wrong = [name for name, value in limits.items() if value is not None]
    wrong += [name for name, value in fixed.items() if value != getattr(nothing, name)]
    if wrong:
        raise _kept(wrong[0])
    chosen = {name: value for name, value in anew.items() if value is not None}
    return msgspec.structs.replace(
        kept,
        isolation=asked.isolation,
        backend=asked.backend,
        egress=egress,
        secrets=secrets,
        template="",  # its network and variables may be others than that says
        env={**kept.env, **asked.env},
        limits=msgspec.structs.replace(kept.limits, **chosen),
    )


def _kept(name: str) -> InvalidInput:
    return InvalidInput(
        f"a sandbox from a snapshot has the snapshot's {name}",
        remediation=f"leave {name} out, or create one without the snapshot",
    )


def exec_request(
    cmd: Command, *, stdin: bool = False, pty: Pty | None = None, **options: Unpack[ExecOptions]
) -> ExecRequest:
    """Return a command's request; a plain string is run by ``sh -c``. Raises InvalidInput."""
    check_names(options, ExecOptions)
    argv = ("sh", "-c", cmd) if isinstance(cmd, str) else _words(cmd)
    if not argv or not argv[0] or [a for a in argv if not isinstance(a, str) or "\0" in a]:
        raise InvalidInput(
            f"command {cmd!r} cannot be run",
            remediation="give a program and its arguments, all text without NUL",
        )
    cwd = options.get("cwd")
    if cwd is not None and (not isinstance(cwd, str) or not cwd or "\0" in cwd):
        raise InvalidInput(
            f"working directory {cwd!r} is not a path", remediation="write it as /workspace"
        )
    if pty is not None:
        check_window(pty.rows, pty.cols)
    return ExecRequest(
        argv=argv,
        cwd=cwd,
        env=environment(options.get("env")),
        stdin=stdin,
        pty=pty,
        timeout=_time(options.get("timeout")),
        limits=_exec_limits(options.get("limits")),
    )


def _words(cmd: object) -> tuple[str, ...]:
    """Return the words of a list; none where it is no list. Bytes are a list of numbers, and a set
    has no order."""
    unordered = isinstance(cmd, bytes | Mapping | Set)
    return tuple(cmd) if isinstance(cmd, Iterable) and not unordered else ()


def check_names(options: Mapping[str, object], known: type, also: Iterable[str] = ()) -> None:
    """A misspelt limit must not pass for none at all (a TypedDict checks nothing at run time).

    ``also`` are options that the caller takes beside those. Raises TypeError."""
    for name in options:
        if name not in known.__annotations__:
            names = ", ".join((*known.__annotations__, *also))
            raise TypeError(f"there is no option {name!r}; use one of: {names}")


def environment(env: Mapping[str, str] | None) -> dict[str, str]:
    if env is not None and not isinstance(env, Mapping):
        raise InvalidInput(
            "env is no mapping of names to values", remediation='write it as {"NAME": "value"}'
        )
    for name, value in (env or {}).items():
        check_variable(name, value)
    return dict(env or {})


def check_variable(name: str, value: str) -> None:
    # The type checker's work, where there is one: ``env={"PORT": 8080}`` is soon written.
    if not (isinstance(name, str) and isinstance(value, str)):
        raise InvalidInput(
            f"environment variable {name!r} is not text",
            remediation='write it as {"NAME": "value"}',
        )
    if not name or "=" in name or "\0" in name or "\0" in value:
        raise InvalidInput(
            f"environment variable {name!r} is not usable", remediation="write it as NAME=value"
        )


def _level(isolation: str | IsolationLevel | None, backend: str | None) -> IsolationLevel:
    if isinstance(isolation, IsolationLevel):
        return isolation
    if isolation is not None:
        return IsolationLevel.parse(isolation)
    # Naming a wall is asking for what it gives; naming nothing is asking for the default.
    return SandboxSpec().isolation if backend is None else IsolationLevel.NONE


def _size(value: Size, what: str, least: int = 1) -> int | None:
    return None if value is None else parse_size(value, what, least)


def _of_rules(net: str, value: Size, what: str) -> int | None:
    size = _size(value, what)
    if size is not None and net != RESTRICTED:
        raise InvalidInput(
            f"{what} bounds a network of rules, and the sandbox has the network {net}",
            remediation="give rules, as --net pypi, or leave it out",
        )
    return size


def _at_least(value: Size, what: str, least: int) -> int | None:
    size = _size(value, what, least)
    if size is not None and size < least:
        raise InvalidInput(
            f"{what} of {readable_size(size)} is too little for a sandbox",
            remediation=f"give at least {readable_size(least)}",
        )
    return size


def _open_files(value: int | str) -> int:
    count = _count(value, "open_files", MIN_OPEN_FILES)
    if count < MIN_OPEN_FILES:
        raise InvalidInput(
            f"open_files of {count} is too little for a sandbox",
            remediation=f"give at least {MIN_OPEN_FILES}",
        )
    return count


def _time(value: Time) -> float | None:
    return None if value is None else parse_duration(value, "timeout")


def _cpus(value: float | str) -> float:
    try:
        # Of texts float takes the digits of every script, and a "_" between them; of a bool 1.0.
        text = "" if isinstance(value, bool) else str(value)
        number = float(value) if text and text.isascii() and "_" not in text else 0.0
    except (ValueError, TypeError):
        number = 0.0
    if not 0.01 <= number <= 4096:
        raise InvalidInput(
            f"cpus {value!r} is not a number of cores",
            remediation="write 0.5 or 2, at least 0.01 and at most 4096",
        )
    return number


def _count(value: int | str, what: str, least: int = 1) -> int:
    text = str(value)
    whole = text.isascii() and text.isdigit() and len(text) < 20
    if not whole or not 1 <= int(text) <= _MAX_COUNT:
        raise InvalidInput(
            f"{what} {value!r} is not a count",
            remediation=f"give a number from {least} to {_MAX_COUNT}",
        )
    return int(text)


def _user(value: str) -> str:
    """As policies see it: root has one word, however it was written."""
    if value in USERS:
        return value
    if value.isascii() and value.isdigit() and len(value) < 12 and int(value) <= _MAX_ID:
        return str(int(value)) if int(value) else "root"
    raise InvalidInput(
        f"user {value!r} is not known inside a sandbox", remediation="use root, sandbox or a uid"
    )


def _flag(value: bool | None, what: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidInput(f"{what} {value!r} is neither true nor false", remediation="write True")
    return bool(value)


def _runtime(value: str | None) -> str | None:
    if value is not None and not (isinstance(value, str) and RUNTIME_NAME.fullmatch(value)):
        raise InvalidInput(
            f"runtime {value!r} is not a name", remediation="use one that agentd doctor lists"
        )
    return value


def _image(value: str) -> str:
    if not isinstance(value, str) or not IMAGE_NAME.fullmatch(value):
        raise InvalidInput(
            f"image {value!r} is not a name",
            remediation="begin with a lower case letter or a digit; agentd image ls lists them",
        )
    return value


def _exec_limits(limits: ExecLimits | None) -> ExecLimits | None:
    if limits is None:
        return None
    if not isinstance(limits, ExecLimits):
        raise InvalidInput(
            "limits of a command are no ExecLimits", remediation="write ExecLimits(cpu=5)"
        )
    fields = msgspec.structs.asdict(limits)
    for name, value in fields.items():
        # A bool is an int to Python, and not what anyone means here.
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (whole and 1 <= value <= _MAX_NUMBER):
            raise InvalidInput(
                f"limit {name} of a command is {value!r}", remediation="give a whole number from 1"
            )
    return limits if any(value is not None for value in fields.values()) else None


def refuse_daemons(body: object, *more: str) -> None:
    """Raises InvalidInput where a SandboxBody asks for what only the sandboxes of a daemon have,
    or for ``more`` of its fields."""
    for field in (*more, *_OF_A_DAEMON):
        value = getattr(body, field)
        if value or (field == "name" and value is not None):
            raise InvalidInput(
                f"{field} is for the sandboxes of a daemon",
                remediation=f"leave {field} out, or give url=",
            )
