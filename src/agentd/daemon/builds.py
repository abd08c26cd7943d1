"""The steps of a build that run commands: each in a sandbox of its own."""

import os
import shutil
import tempfile
from typing import TYPE_CHECKING, cast

from agentd.daemon.packages.inside import run
from agentd.daemon.pipeline import with_own_hosts
from agentd.image.oci.building.layer import LayerWriter
from agentd.image.oci.building.running import SCRIPT, Output, RunEnd, RunStep
from agentd.linux.inside import read_small
from agentd.model.egress import network
from agentd.model.limits import Limits
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends.limits import on_this_kernel
from agentd.sandbox.backends.linux.exported import Exported, write_layer
from agentd.sandbox.backends.linux.stepping import StepBackend
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.manager import Manager

if TYPE_CHECKING:
    from agentd.sandbox.ports import Backend


class SandboxRunner:
    """Runs steps; close it in the end. ``net`` is "none", "host" or rules."""

    def __init__(self, net: str, limits: Limits) -> None:
        (self._net, self._egress), self._limits = network(net), limits
        self._backend: StepBackend | None = None
        self._manager: Manager | None = None

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()

    def run(self, step: RunStep, layer: LayerWriter, output: Output) -> RunEnd:
        """Run a step as ``running.Runner`` has it."""
        if self._manager is None or self._backend is None:
            self._backend = StepBackend()
            self._manager = Manager(made={"linux": cast("Backend", self._backend)})
        backend = self._backend
        backend.start_of(step.image, step.root)
        spec = SandboxSpec(
            backend="linux",
            image=step.image.name,
            writable=True,
            net=self._net,
            egress=self._egress,
            limits=self._limits,
            env=_home(step) | step.env,
        )
        handle = self._manager.create(with_own_hosts(spec))
        try:
            if step.script:
                handle.guest.files.write(SCRIPT, step.script.encode(), 0o755)
            result = run(handle, ExecRequest(step.argv), output)
            told = "" if result.exit_code is not None else result.cause.message
            end = RunEnd(result.exit_code, told)
            if end.exit_code == 0:
                _write(handle, step, layer, backend.only_uid())
            return end
        finally:
            self._manager.destroy(handle)


def _write(handle: SandboxHandle, step: RunStep, layer: LayerWriter, uid: int | None) -> None:
    folder = tempfile.mkdtemp(prefix="changes", dir=os.path.dirname(layer.path))
    try:
        handle.snapshots("build").snapshot(folder)
        layer.bound = on_this_kernel(handle.spec.limits).disk or layer.bound
        write_layer(Exported(folder, step.root, uid), layer)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _home(step: RunStep) -> dict[str, str]:
    """HOME as a login has it, where the image does not say."""
    run = step.image.config.run
    if "HOME" in run.environment():
        return {}
    user = run.user.partition(":")[0] or "0"
    root = os.open(step.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for line in read_small(root, "/etc/passwd").splitlines():
            fields = line.split(":")
            if len(fields) > 5 and user in (fields[0], fields[2]):
                return {"HOME": fields[5] or "/"}
    finally:
        os.close(root)
    return {"HOME": "/root" if user in ("0", "root") else "/"}
