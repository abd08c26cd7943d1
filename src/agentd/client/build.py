"""The caller's own side of what it asks for: its files and its environment."""

import errno
import math
import os
import shlex
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Unpack

from msgspec import structs

from agentd.client import arguments, secrets
from agentd.model import options
from agentd.model.egress import RESTRICTED, network
from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.labels import check_labels, check_name
from agentd.model.mount import WORKSPACE, Mount, MountMode, check_workspace, unknown_mode
from agentd.model.options import Command, ExecOptions, SandboxOptions, check_variable, exec_request
from agentd.model.spec import Pty, SandboxSpec
from agentd.model.typed import like
from agentd.model.units import parse_duration, parse_wait

if TYPE_CHECKING:
    from agentd.model.api import SandboxBody

MAX_ENV_FILE = 2 << 20  # bytes: what words and variables of a program may take together

__all__ = [
    "Command",
    "ExecOptions",
    "SandboxOptions",
    "check_variable",
    "exec_request",
    "parse_env_file",
    "parse_variable",
    "restored_spec",
    "sandbox_body",
    "sandbox_spec",
    "terminal",
]


def sandbox_spec(**asked: Unpack[SandboxOptions]) -> SandboxSpec:
    """Make a spec as ``model.options``; what is mounted must be there. Raises InvalidInput."""
    spec = options.sandbox_spec(**asked)
    # Backends follow no link in a source: one's own are followed here, once.
    mounts = tuple(m if m.volume else structs.replace(m, source=_source(m)) for m in spec.mounts)
    return structs.replace(spec, mounts=mounts) if mounts else spec


def sandbox_body(
    *,
    labels: Mapping[str, str] | None = None,
    ttl: str | float | None = None,
    snapshot: str | None = None,
    template: str | None = None,
    name: str | None = None,
    wait: str | float | None = None,
    idle_timeout: str | float | None = None,
    on_idle: str | None = None,
    **asked: Unpack[SandboxOptions],
) -> "SandboxBody":
    """Return what is asked of a service. It is judged here as well, so that what is wrong is told
    without asking. Raises InvalidInput."""
    from agentd.model.api import SandboxBody

    options.check_names(asked, SandboxOptions, also=sandbox_body.__kwdefaults__ or ())
    if idle_timeout is not None or on_idle is not None:
        from agentd.model.idle import idle_rule

        idle_rule(idle_timeout, on_idle)
    arguments.time(ttl, "ttl")
    arguments.time(wait, "wait")
    if ttl is not None:
        parse_duration(ttl, "ttl")
    if wait is not None:
        parse_wait(wait, math.inf)
    if name is not None:
        check_name(arguments.text(name, "name"))
    if (backend := asked.get("backend")) is not None:
        arguments.text(backend, "backend", "agentd doctor lists them")
    net, rules = network(asked.get("net"))
    if template is not None and net == "none":
        asked["net"] = []  # the template's to say: rules may be
    spec = options.sandbox_spec(**asked)
    folders = [mount for mount in spec.mounts if not mount.volume]
    workspace = [mount for mount in folders if mount.target == WORKSPACE]
    others = [mount for mount in folders if mount.target != WORKSPACE]
    volumes = [mount for mount in spec.mounts if mount.volume]
    level = asked.get("isolation")
    return like(
        SandboxBody,
        spec,
        isolation=level.label if isinstance(level, IsolationLevel) else level,
        workspace=f"{workspace[0].source}:{workspace[0].mode}" if workspace else None,
        mounts=tuple(f"{mount.source}:{mount.target}:{mount.mode}" for mount in others),
        net=rules if net == RESTRICTED else net,
        secrets=secrets.read(asked.get("secrets")),
        volumes=tuple(f"{mount.volume}:{mount.target}:{mount.mode}" for mount in volumes),
        labels=check_labels(arguments.labels(labels)),
        ttl=ttl,
        snapshot=snapshot,
        template=None if template is None else arguments.text(template, "template"),
        name=name,
        wait=wait,
        idle_timeout=idle_timeout,
        on_idle=on_idle,
        **structs.asdict(spec.limits),
    )


def restored_spec(kept: SandboxSpec, **asked: Unpack[SandboxOptions]) -> SandboxSpec:
    return options.restored_spec(kept, **asked)


def terminal(pty: Pty | tuple[int, int] | None) -> Pty | None:
    """Return a terminal's size. Raises InvalidInput for what has none: ``pty=True``, say."""
    if pty is None or isinstance(pty, Pty):
        return pty
    if isinstance(pty, tuple) and len(pty) == 2:
        return Pty(*pty)
    raise InvalidInput(
        f"pty {pty!r} has no rows and columns", remediation="write it as (24, 80) or Pty(24, 80)"
    )


def _source(mount: Mount) -> str:
    """Where it really is. All is said of that: its name may mean another a moment later."""
    try:
        real = os.path.realpath(mount.source, strict=True)
        is_dir = stat.S_ISDIR(os.stat(real, follow_symlinks=False).st_mode)
    except OSError as error:
        path, colon, mode = mount.source.rpartition(":")
        # A path may have a colon in it; where only the part before it is there, a mode was meant.
        if colon and "/" not in mode and os.path.exists(path):
            known = tuple(MountMode) if mount.target == WORKSPACE else (MountMode.RO, MountMode.RW)
            raise unknown_mode(mount.source, mode, known) from None
        if error.errno == errno.ENOENT:
            raise InvalidInput(
                f"mount source {mount.source!r} does not exist",
                remediation="create it, or correct the path",
            ) from None
        raise InvalidInput(
            f"mount source {mount.source!r} cannot be reached",
            cause=error.strerror or "",
            remediation="correct the path, and see that you may enter every folder of it",
        ) from None
    check_workspace(mount, directory=is_dir)
    return real


def parse_variable(text: str) -> tuple[str, str]:
    """Parse ``NAME=value``; a bare ``NAME`` takes the caller's own value."""
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
    """Parse ``NAME=value`` lines, shell quotes allowed; blank lines and ``#`` lines are skipped."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_ENV_FILE + 1)
        if len(data) > MAX_ENV_FILE:
            raise InvalidInput(
                f"env file {path!r} has more than {MAX_ENV_FILE} bytes",
                remediation="leave some out: no program is started with so much",
            )
        text = data.decode("utf-8-sig")  # the mark that Windows' editors put first is of no name
        lines = text.split("\n")  # nothing else ends one: a value may have U+2028 in it
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidInput(
            f"env file {path!r} cannot be read: {reason}", remediation="give a readable file"
        ) from None
    found = {}
    for number, line in enumerate(lines, 1):
        words = line.strip().removeprefix("export ")
        if words and not words.startswith("#"):
            name, value = _env_line(words, path, number)
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
