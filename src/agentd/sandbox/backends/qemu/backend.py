"""The ``qemu`` backend: a virtual machine restored from a template, the agent its init's child."""

import contextlib
import os
import threading
import time
from collections.abc import Callable

import msgspec

from agentd.image import build as images
from agentd.image.model import OWN
from agentd.linux import anyip, container, privileges
from agentd.model.availability import Availability, Blocker
from agentd.model.errors import Refused, SandboxError
from agentd.model.isolation import IsolationLevel
from agentd.model.result import CauseCode, Exit
from agentd.model.spec import DEFAULT_IMAGE, ExecRequest, SandboxSpec
from agentd.sandbox import progress
from agentd.sandbox.backends import identity, leases
from agentd.sandbox.backends.cgroups import make_group
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux.plan import certificates
from agentd.sandbox.backends.qemu import process as machines
from agentd.sandbox.backends.qemu import record as records
from agentd.sandbox.backends.qemu import report
from agentd.sandbox.backends.qemu.boot import Boot, StateRefused
from agentd.sandbox.backends.qemu.plan import (
    NET,
    QemuMachine,
    QemuPlan,
    host_limits,
    kernel_arguments,
    make_plan,
)
from agentd.sandbox.backends.qemu.probe import Monitor, examine, find
from agentd.sandbox.backends.qemu.record import MachineRecord
from agentd.sandbox.backends.qemu.shares import Share, check_source, mount_command, open_share
from agentd.sandbox.backends.qemu.wall import ForeignQemuWall, QemuWall
from agentd.sandbox.backends.vm import BOOT_SECONDS, foreign, network
from agentd.sandbox.backends.vm.handshake import DeviceMissing, set_up, settings
from agentd.sandbox.backends.vm.image import found, of_spec
from agentd.sandbox.backends.vm.supervisor import Keeper
from agentd.sandbox.backends.vm.template import Templates
from agentd.transport.handshake import greet
from agentd.transport.v1 import V1Connection

_ANSWER_SECONDS = 60.0
_DEVICE_SECONDS = 60.0
_DEVICE_POLL = 0.05
_LEAVE_SECONDS = 0.1
# What a guest may need later, when nothing in it loads modules for a device that is plugged in.
_MODULES = (
    *("failover", "net_failover", "virtio_net", "virtiofs", "virtio_blk", "erofs", "overlay"),
    *anyip.MODULES,
)


class QemuBackend:
    """``transport`` is "vsock", or "serial" for one stream at a time over the serial port."""

    name = "qemu"
    level = IsolationLevel.MICROVM
    images = True
    writable = True
    volumes = True
    abilities = frozenset({"pause", "snapshot", "fork", "network"})
    fidelity = QemuWall.fidelity

    def __init__(self, templates: Templates | None = None, transport: str = "vsock") -> None:
        self._templates = templates or Templates()
        self._serial = transport == "serial"
        self._lock = threading.Lock()
        self._kept: Keeper | None = None
        self._networked = False  # whether the relay was needed
        #: Told of what takes long: what is done, steps done, steps in all.
        self.progress: Callable[[str, int, int], None] = progress.report_steps

    def requirements(self) -> tuple[str, ...]:
        return (
            "x86_64",
            "QEMU 9.0 or newer",
            "an image, built at the first use from Debian packages",
            "KVM for speed: software emulation else",
        )

    def probe(self) -> Availability:
        """The keeper's namespaces are tried for real: containers refuse them."""
        blockers, notes = examine()
        if not blockers:
            try:
                self._keeper().wait_ready()
            except SandboxError as error:
                what = f"{error.message}: {error.cause}" if error.cause else error.message
                held = [name for name in container.around() if name != "proc"]
                fix = (
                    container.fix(*held) if held else "see the message; agentd doctor -v has facts"
                )
                blockers = [Blocker(what, fix)]
        return Availability.of(blockers, notes if not blockers else [])

    def plan(self, spec: SandboxSpec) -> QemuPlan:
        """As every ``plan``, and raises NotFound where there is no such image."""
        if spec.mounts and os.geteuid() == 0 and not privileges.may_mount():
            raise Refused(
                "backend qemu run by root without CAP_SYS_ADMIN cannot mount: nobody's rights can "
                "be lent to its virtiofsd",
                remediation="leave the mounts out, or run agentd as an ordinary user",
            )
        for mount in spec.mounts:
            check_source(mount)
        return make_plan(found(spec))

    def launch(self, plan: QemuPlan) -> QemuWall:
        if self._serial and (plan.spec.mounts or plan.table is not None):
            raise Refused(
                "mounts and a network of rules need vsock, and this machine has its serial port "
                "alone",
                remediation="leave the mounts and --net out",
            )
        if plan.table is not None:
            self._networked = True
            network.begin()
        keeper = self._keeper()  # starts while we look at the rest
        monitor = _monitor()
        machine = msgspec.structs.replace(plan.machine, accel=monitor.accel)
        boot = self._boot(plan, monitor)
        if boot.foreign:
            return self._foreign(keeper, plan, machine, boot, monitor)
        key = " ".join((boot.digest, monitor.key, machine.key, kernel_arguments(), *_MODULES))
        for attempt in (1, 2):
            state = self._templates.get(key, lambda fd: self._make(keeper, machine, boot, fd))
            try:
                return self._restored(keeper, plan, machine, boot, monitor, state)
            except StateRefused:
                # As after an upgrade of QEMU's firmware alone.
                self._templates.drop(key)
                if attempt == 2:
                    raise
            finally:
                os.close(state)
        raise AssertionError("the loop returns or raises")

    def restore(self, plan: QemuPlan, folder: str) -> QemuWall:
        """The snapshot decides what the machine is; memory and CPUs of ``plan`` must fit it."""
        keeper = self._keeper()
        monitor = _monitor()
        boot = self._boot(plan, monitor)
        kept, state = records.read_record(folder)
        try:
            records.check(kept, plan, boot, monitor)
            return self._restored(keeper, plan, kept.machine, boot, monitor, state, kept)
        finally:
            os.close(state)

    def close(self) -> None:
        with self._lock:
            keeper, self._kept = self._kept, None
        if keeper is not None:
            keeper.close()
        self._templates.close()
        if self._networked:
            network.rest()

    def _keeper(self) -> Keeper:
        with self._lock:
            if self._kept is not None and not self._kept.alive():
                self._kept.close()
                self._kept = None
            if self._kept is None:
                self._kept = Keeper()
            return self._kept

    def _boot(self, plan: QemuPlan, monitor: Monitor) -> Boot:
        image = images.ensure(
            DEFAULT_IMAGE if plan.spec.image_digest else plan.spec.image, self.progress
        )
        theirs = image.base == OWN
        return Boot(monitor.path, image.kernel, image.initramfs, image.digest, theirs)

    def _make(self, keeper: Keeper, machine: QemuMachine, boot: Boot, state: int) -> None:
        """Boot a machine once, without a card and a vsock device, and write down its state."""
        self.progress("booting a template", 0, 1)
        process = machines.start(keeper, machine, boot, block=_block())
        try:
            _await_agent(process)
            process.save(state)
        finally:
            process.end()
        self.progress("booting a template", 1, 1)

    def _restored(
        self,
        keeper: Keeper,
        plan: QemuPlan,
        machine: QemuMachine,
        boot: Boot,
        monitor: Monitor,
        state: int,
        kept: MachineRecord | None = None,
    ) -> QemuWall:
        """``kept``: of a snapshot, whose state it is. That machine has its root already."""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as passed:
            root = of_spec(plan.spec, undo, passed, self.progress, kept=kept is not None)
            record = records.of(machine, boot, monitor, root)
            if kept is not None:
                records.check_image(kept, record)
            block = _block()
            if block is not None:
                undo.callback(block.release, ended=False)
            opened: list[Share] = []
            taken = leases.take(plan.spec.mounts, undo)
            lent_to = None if block is None else block.id + 1
            for index, (mount, lease) in enumerate(zip(plan.spec.mounts, taken, strict=True)):
                opened.append(open_share(mount, index, lent_to, lease))
                passed.callback(os.close, opened[-1].fd)
            # The guest holds the limits; what is around QEMU holds a guest that was broken.
            group, detail = make_group(plan.spec.limits, host_limits(plan, machine), needed=())
            if group is not None:
                undo.callback(group.remove)
            net = plan.spec.net == "host"
            process = machines.start(
                keeper,
                machine,
                boot,
                state=state,
                net=net,
                group=group,
                block=block,
                disk=root.disk if root is not None and kept is not None else None,
            )
            undo.callback(process.end)
            if net:
                process.attach_card()
            rules = self._admitted(process, plan, undo)
            if root is not None and kept is None:
                process.attach_disk(root.disk)
            if not self._serial:
                process.attach_vsock()
            net_told = _network_of(plan, rules)
            fields = settings(plan.spec, plan.limits, net_told, certificates(plan.table))
            if root is not None:
                fields["user"] = root.user(plan.spec)
            for share in opened:
                process.attach_share(share, int(str(fields["user"])))
            if root is not None and kept is None:
                fields["root"] = root.request(
                    plan.spec, plan.limits, [share.tag for share in opened]
                )
            setup = _set_up(process, fields, thaw=kept is not None)
            if opened and root is None:
                _mount(process, opened)
            image = None if root is None else root.image
            wall = QemuWall(
                process,
                group,
                report.enforcement(
                    plan, machine, process.controls, setup, group, detail, opened, image
                ),
                record,
                serial=self._serial,
                shares=bool(opened),
            )
            wall.attach_leases(taken)
            wall.attach_network(rules)
            if root is not None:
                wall.attach_image(root, root.begin(plan.spec.mounts))
            undo.pop_all()
            return wall

    def _admitted(
        self, process: machines.QemuProcess, plan: QemuPlan, undo: contextlib.ExitStack
    ) -> network.SandboxNetwork | None:
        if plan.table is None:
            return None
        self._networked = True
        return network.admitted(process.listen_to_guest(), plan.spec, plan.table, undo)

    def _foreign(
        self, keeper: Keeper, plan: QemuPlan, machine: QemuMachine, boot: Boot, monitor: Monitor
    ) -> QemuWall:
        """A machine of an image whose agent is not ours: booted, and told nothing."""
        foreign.check(plan.spec)
        with contextlib.ExitStack() as undo:
            group, detail = make_group(plan.spec.limits, host_limits(plan, machine), foreign.NEEDED)
            if group is not None:
                undo.callback(group.remove)
            process = machines.start(keeper, machine, boot, group=group, block=_block())
            undo.callback(process.end)
            process.attach_vsock()
            foreign.await_agent(process, process.vsock_stream, BOOT_SECONDS)
            wall = ForeignQemuWall(
                process,
                group,
                report.enforcement(plan, machine, process.controls, (), group, detail),
                records.of(machine, boot, monitor, None),
                serial=False,
                shares=False,
            )
            undo.pop_all()
            return wall


def _network_of(plan: QemuPlan, rules: network.SandboxNetwork | None) -> dict[str, object] | None:
    """What sys.setup is told of its network."""
    if rules is not None:
        return network.setup(rules)
    return NET if plan.spec.net == "host" else None


def _block() -> Block | None:
    """Take a block of ids for a machine's own users, where its folders can be lent to them, too."""
    return identity.take() if privileges.may_mount() else None


def _monitor() -> Monitor:
    found = find()
    if isinstance(found, Monitor):
        return found
    raise Refused(found.what, remediation=found.fix)


def _await_agent(process: machines.QemuProcess) -> None:
    """Wait until the agent answers, and load what a sandbox may ask of the kernel later.

    That goes over v1, in which the agent itself acts: in v2 it would be the sandbox's user.
    """
    deadline = time.monotonic() + BOOT_SECONDS
    try:
        v1 = V1Connection(process.serial_stream(BOOT_SECONDS))
        try:
            # QEMU takes what is sent, whether somebody in the guest reads it or not.
            request = ExecRequest(argv=("modprobe", "-a", *_MODULES), timeout=BOOT_SECONDS)
            _answered(v1.run(request, None, BOOT_SECONDS)[0])
        finally:
            v1.close()
        # A port has no connections: the agent must see that this one ended before the next comes.
        while not _speaks_v2(process):
            if time.monotonic() >= deadline:
                raise SandboxError(
                    "the agent in the image speaks protocol v1 alone, and cannot be set up",
                    remediation="build the image again: agentd image build",
                )
            time.sleep(_LEAVE_SECONDS)
    except SandboxError as error:
        if process.wait(0):
            raise SandboxError("the template did not boot", cause=process.why()) from error
        raise


def _answered(end: Exit) -> Exit:
    """``end``, unless it is that nothing came in time."""
    if end.cause.code is CauseCode.TIMEOUT:
        raise SandboxError(
            "the agent in the image does not answer",
            remediation="build the image again: agentd image build --force",
        )
    return end


def _speaks_v2(process: machines.QemuProcess) -> bool:
    line = greet(process.serial_stream(_ANSWER_SECONDS), _ANSWER_SECONDS)
    line.close()
    return not isinstance(line, V1Connection)


def _mount(process: machines.QemuProcess, opened: list[Share]) -> None:
    """Mount them in the guest, over v1, in which the agent itself acts."""
    v1 = V1Connection(process.vsock_stream(_ANSWER_SECONDS))
    try:
        for share in opened:
            request = ExecRequest(argv=mount_command(share), timeout=_ANSWER_SECONDS)
            deadline = time.monotonic() + _DEVICE_SECONDS
            while True:
                end, _, error, _ = v1.run(request, None, _ANSWER_SECONDS)
                if _answered(end).ok:
                    break
                if time.monotonic() >= deadline:
                    raise SandboxError(
                        f"the guest could not mount {share.mount.target}",
                        cause=error.decode(errors="replace").strip()[:500],
                    )
                time.sleep(_DEVICE_POLL)  # the device may not be found yet
    finally:
        v1.close()


def _set_up(process: machines.QemuProcess, fields: dict[str, object], *, thaw: bool) -> list[str]:
    deadline = time.monotonic() + _DEVICE_SECONDS
    while True:
        try:
            stream = process.serial_stream(_ANSWER_SECONDS)
            return set_up(stream, fields, _ANSWER_SECONDS, thaw=thaw)
        except DeviceMissing:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_DEVICE_POLL)
        except SandboxError as error:
            raise network.explained(error) from error
