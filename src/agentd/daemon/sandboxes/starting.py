"""What a template has begun in each of its sandboxes, and when that may be handed out."""

import os
import select
import time
from functools import partial
from typing import TYPE_CHECKING

from agentd.daemon.commands.begin import new_id
from agentd.daemon.commands.ends import completed
from agentd.daemon.pipeline import NO_VALUES, Pipeline, SecretValues, run
from agentd.daemon.sandboxes import templates
from agentd.model import context
from agentd.model.errors import AgentdError, NotReady
from agentd.model.running import SpawnFailed
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.model.units import format_duration
from agentd.sandbox.handle import BegunCommand, SandboxHandle

if TYPE_CHECKING:
    from agentd.daemon.config.schema import Config, TemplateSettings
    from agentd.model.result import Result
    from agentd.sandbox.snapshots import Snapshot

# Seconds between checks: what is soon ready is soon told, and the rest not asked all the time.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_MAX_SAID = 200


def built(
    pipeline: Pipeline,
    spec: SandboxSpec,
    snapshot: "Snapshot | None",
    config: "Config",
    values: SecretValues = NO_VALUES,
) -> SandboxHandle:
    """Make a sandbox of a spec that was admitted, ready as its template says; ``values`` are those
    of its secrets.

    Raises as ``Pipeline.build``, NotReady, NotFound for a template that is gone; nothing is left
    behind then.
    """
    handle = pipeline.build(spec, snapshot, values)
    if spec.template and snapshot is None:
        gone = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            with context.waiting_client().telling(partial(os.eventfd_write, gone, 1)):
                handle.begun = bring_up(handle, templates.find(config, spec.template), gone)
        except BaseException:
            pipeline.close(handle)
            raise
        finally:
            os.close(gone)
    return handle


def bring_up(
    handle: SandboxHandle, template: "TemplateSettings", cancel: int = -1
) -> BegunCommand | None:
    """Begin its start command, and wait until its check succeeds; what is begun, if anything is.

    ``cancel`` is a descriptor: readable, nobody waits any more. Raises NotReady, BackendLost.
    """
    deadline = time.monotonic() + float(template.ready_timeout)
    begun = _begin(handle, template) if template.start else None
    if template.ready:
        _await_ready(handle, template, begun, deadline, cancel)
    return begun


def stands(handle: SandboxHandle) -> bool:
    """Return whether what was begun in it has not failed since."""
    try:
        return not _failure(handle, handle.begun)
    except AgentdError:
        return False


def _begin(handle: SandboxHandle, template: "TemplateSettings") -> BegunCommand:
    """It outlives us, and is found by its id; of output that nobody reads the latest is kept."""
    asked = ExecRequest(template.start, env=dict(template.env), tag=new_id())
    try:
        handle.guest.start_detached(completed(asked, handle))
    except SpawnFailed as failure:
        raise NotReady(
            f"the start command of template {template.name} cannot be run",
            cause=failure.exit.cause.message,
            remediation="correct start in the [[template]], or its image",
        ) from failure
    return BegunCommand(asked.tag or "", template.start, time.time())


def _await_ready(
    handle: SandboxHandle,
    template: "TemplateSettings",
    begun: BegunCommand | None,
    deadline: float,
    cancel: int,
) -> None:
    pause, came = _FIRST_PAUSE, "its check was never run"
    while (left := deadline - time.monotonic()) > 0:
        said: list[bytes] = []
        request = ExecRequest(
            template.ready, env=dict(template.env), timeout=left, output_limit=1 << 16
        )
        checked = run(handle, request, emit=partial(_take, said), cancel=cancel)
        if checked.ok:
            return
        _check_begun(handle, template, begun)
        came = _told(checked, b"".join(said))
        if _is_readable(cancel, min(pause, max(0.0, deadline - time.monotonic()))):
            raise NotReady(
                f"nobody waits for template {template.name} any more", remediation="ask again"
            )
        pause = min(pause * 2, _LONGEST_PAUSE)
    raise NotReady(
        f"a sandbox of template {template.name} was not ready within "
        f"{format_duration(float(template.ready_timeout))}",
        cause=f"its check: {came}",
        remediation="raise ready_timeout in the [[template]], or correct its start or ready",
    )


def _check_begun(
    handle: SandboxHandle, template: "TemplateSettings", begun: BegunCommand | None
) -> None:
    """One that has done its work and ended well is no reason to wait no longer. Raises NotReady."""
    if how := _failure(handle, begun):
        raise NotReady(
            f"the start command of template {template.name} ended before it was ready",
            cause=how,
            remediation="correct start in the [[template]]",
        )


def _failure(handle: SandboxHandle, begun: BegunCommand | None) -> str:
    if begun is None:
        return ""
    for known in handle.guest.processes():
        if known.tag == begun.id and known.state == "exited" and (known.code or known.signal):
            return f"signal {known.signal}" if known.signal else f"exit code {known.code}"
    return ""


def _take(said: list[bytes], stream: str, data: bytes) -> None:
    said.append(data)


def _told(checked: "Result", output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    last = "".join(c for c in lines[-1] if c.isprintable())[:_MAX_SAID] if lines else ""
    return f"{checked.cause.message}: {last}" if last else checked.cause.message


def _is_readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    if fd >= 0:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
