"""The model's values as REST has them, and the other way."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Unpack

import msgspec

from agentd.client import arguments
from agentd.model import options, words
from agentd.model.api import ExecBody, ResultView, SandboxBody, SandboxView
from agentd.model.errors import AgentdError
from agentd.model.isolation import IsolationLevel
from agentd.model.mount import WORKSPACE
from agentd.model.options import SandboxOptions
from agentd.model.result import Result, SandboxInfo
from agentd.model.spec import ExecRequest


def sandbox_body(
    *,
    labels: Mapping[str, str] | None = None,
    ttl: str | float | None = None,
    snapshot: str | None = None,
    **asked: Unpack[SandboxOptions],
) -> SandboxBody:
    """Judged here as well, so that what is wrong is told without asking. Raises InvalidInput."""
    spec = options.sandbox_spec(**asked)
    workspace = [mount for mount in spec.mounts if mount.target == WORKSPACE]
    others = [mount for mount in spec.mounts if mount.target != WORKSPACE]
    level = asked.get("isolation")
    return SandboxBody(
        isolation=level.label if isinstance(level, IsolationLevel) else level,
        backend=spec.backend,
        image=spec.image,
        net=spec.net,
        user=spec.user,
        env=spec.env,
        workspace=f"{workspace[0].source}:{workspace[0].mode}" if workspace else None,
        mounts=tuple(f"{mount.source}:{mount.target}:{mount.mode}" for mount in others),
        labels=dict(arguments.mapping(labels, "labels", 'write them as {"job": "7"}')),
        ttl=ttl,
        snapshot=snapshot,
        **msgspec.structs.asdict(spec.limits),
    )


def exec_body(request: ExecRequest, stdin: bytes | None = None, *, wait: bool) -> ExecBody:
    """``stdin`` is all of it; without it ``request.stdin`` leaves it open."""
    whole: dict[str, str] = {}
    if stdin is not None:
        whole = {"stdin": b64encode(stdin).decode(), "stdin_encoding": "base64"}
    return ExecBody(
        cmd=request.argv,
        cwd=request.cwd,
        env=request.env,
        timeout=request.timeout,
        limits=request.limits,
        stdin_open=stdin is None and request.stdin,
        pty=request.pty,
        tag=request.tag,
        wait=wait,
        **whole,
    )


def result(view: ResultView, stdout: bytes | None = None, stderr: bytes | None = None) -> Result:
    """With the view's own output unless another is given."""
    return Result(
        request_id=view.request_id,
        status=view.status,
        exit_code=view.exit_code,
        signal=view.signal,
        cause=words.cause(view.cause, words.in_options),
        stdout=_bytes(view.stdout, view.encoding) if stdout is None else stdout,
        stderr=_bytes(view.stderr, view.encoding) if stderr is None else stderr,
        truncated=view.truncated,
        usage=view.usage,
        timing=view.timing,
        sandbox=view.sandbox,
        enforcement=view.enforcement,
        receipt=view.receipt,
    )


def info(view: SandboxView) -> SandboxInfo:
    return SandboxInfo(view.id, view.backend, view.level)


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "base64":
        return text.encode(errors="surrogateescape")
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise AgentdError("the daemon's answer is not base64") from None
