"""The ``firecracker`` backend: KVM, the jailer, and Firecracker's API."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from agentd.image.model import OWN
from agentd.linux import kvm, privileges, process
from agentd.linux.cgroup import Group
from agentd.model.availability import Availability, Blocker
from agentd.model.errors import Refused, SandboxError
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.sandbox import progress
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.cgroups import group_name, make_group, own_hierarchy
from agentd.sandbox.backends.firecracker import (
    config,
    jailer,
    programs,
    report,
    snapshot,
    template,
    wall,
)
from agentd.sandbox.backends.firecracker import plan as plans
from agentd.sandbox.backends.firecracker.config import ApiRequest
from agentd.sandbox.backends.firecracker.jailer import Jail
from agentd.sandbox.backends.firecracker.plan import FirecrackerPlan
from agentd.sandbox.backends.firecracker.process import FirecrackerProcess
from agentd.sandbox.backends.firecracker.programs import Programs
from agentd.sandbox.backends.firecracker.version import (
    OLDEST,
    Quirks,
    Version,
    lacks,
    parse,
    quirks,
)
from agentd.sandbox.backends.firecracker.wall import FirecrackerWall, open_stream
from agentd.sandbox.backends.linux.plan import certificates
from agentd.sandbox.backends.vm import BOOT_SECONDS, foreign, network
from agentd.sandbox.backends.vm.ceiling import Ceiling
from agentd.sandbox.backends.vm.handshake import set_up, settings
from agentd.sandbox.backends.vm.image import refuse
from agentd.sandbox.backends.vm.template import Templates
from agentd.transport.handshake import greet

_SETUP_SECONDS = 30.0
_VERSION_SECONDS = 10.0


class Bootable(Protocol):
    """An image, as far as a machine starts from it."""

    @property
    def kernel(self) -> str: ...
    @property
    def initramfs(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def base(self) -> str: ...


class FirecrackerBackend:
    """``Restores`` too. Whatever is given takes the place of what this machine has, for tests; with
    an ``image`` of theirs there are templates only where they are given, too.
    """

    name = "firecracker"
    level = IsolationLevel.MICROVM
    images = True
    writable = True
    abilities = frozenset({"pause", "snapshot", "fork", "network"})
    fidelity = FirecrackerWall.fidelity

    def __init__(
        self,
        *,
        base: str = jailer.BASE,
        found: Programs | None = None,
        kvm_works: Callable[[], kvm.KvmReport] = kvm.probe,
        image: Callable[[str], Bootable] | None = None,
        templates: Templates | None = None,
    ) -> None:
        self._base = base
        self._found = found
        self._kvm_works = kvm_works
        self._stored = image is None
        self._image = image or _stored_image
        self._templates = templates or (Templates() if image is None else None)
        self._lock = threading.Lock()
        self._availability: Availability | None = None
        self._programs = Programs("", "")
        self._version: Version | None = None
        self._not_kept: set[str] = set()  # keys of templates that could not be
        self._networked = False  # whether the relay was needed

    def requirements(self) -> tuple[str, ...]:
        return (
            "KVM that runs a guest",
            "root",
            f"firecracker and jailer of one release, {OLDEST} or newer",
            "cgroup v2",
        )

    def probe(self) -> Availability:
        """Runs a guest of a few instructions in KVM: that its device exists says nothing."""
        with self._lock:
            if self._availability is None:
                self._availability = self._examine()
            return self._availability

    def plan(self, spec: SandboxSpec) -> FirecrackerPlan:
        """As every ``plan``, and raises NotFound where there is no such image."""
        if self._stored:
            refuse(spec, self.name, "qemu")
        return plans.make_plan(spec)

    @property
    def lacks(self) -> dict[str, str]:
        return {} if self._version is None else lacks(quirks(self._version))

    def launch(self, plan: FirecrackerPlan) -> FirecrackerWall:
        self.probe()
        if plan.table is not None:
            self._networked = True
            network.begin()
        image = self._image(plan.spec.image)
        theirs = image.base == OWN
        if theirs:
            foreign.check(plan.spec)
        version = self._version
        if self._templates is None or theirs or version is None or quirks(version).restore_why:
            return self._boot(plan, image, theirs=theirs)
        return self._from_template(self._templates, plan, image, version)

    def _boot(
        self,
        plan: FirecrackerPlan,
        image: Bootable,
        *,
        theirs: bool = False,
        target: int | None = None,
    ) -> FirecrackerWall:
        binds = {config.KERNEL: image.kernel, config.INITRAMFS: image.initramfs}
        return self._build(
            plan,
            image.digest,
            binds,
            lambda found: config.boot(plan, found),
            theirs=theirs,
            target=target,
        )

    def _from_template(
        self, templates: Templates, plan: FirecrackerPlan, image: Bootable, version: Version
    ) -> FirecrackerWall:
        """The first one is booted, and is what the others go on from."""
        booted: list[FirecrackerWall] = []
        key = template.key(plan, version, image.digest)
        if key in self._not_kept:
            return self._boot(plan, image)
        try:
            state = templates.get(key, lambda fd: booted.append(self._boot(plan, image, target=fd)))
        except template.NotKept:
            self._not_kept.add(key)
            return self._boot(plan, image)
        except BaseException:
            for one in booted:
                one.kill()
            raise
        try:
            if booted:
                return booted[0]
            with template.binds(state, plan.memory, templates.folder) as binds:
                return self._build(plan, image.digest, binds, config.restore)
        except Refused:
            raise
        except SandboxError:
            templates.drop(key)  # of no use, for whatever reason: it is made anew next time
            return self._boot(plan, image)
        finally:
            os.close(state)

    def restore(self, plan: FirecrackerPlan, folder: str) -> FirecrackerWall:
        """Raises Refused for a snapshot of another release, CPU or size of machine."""
        about = snapshot.read(folder)

        def requests(found: Quirks) -> Iterator[ApiRequest]:
            snapshot.check(folder, plan, found.version)
            return config.restore(found)

        built = self._build(plan, about.image, snapshot.binds(folder), requests)
        try:
            built.thaw()
        except BaseException:
            built.kill()
            raise
        return built

    def close(self) -> None:
        """Each machine has a warden of its own: templates alone are shared."""
        if self._templates is not None:
            self._templates.close()
        if self._networked:
            network.rest()

    def _build(
        self,
        plan: FirecrackerPlan,
        image: str,
        binds: Mapping[str, str],
        requests: Callable[[Quirks], Iterable[ApiRequest]],
        *,
        theirs: bool = False,
        target: int | None = None,
    ) -> FirecrackerWall:
        """``theirs``: the agent in the image is not ours, and can be told nothing. ``target``: an
        empty file for a template of what has booted.
        """
        self.probe()
        block = identity.take()
        jail = Jail(self._base, group_name(), os.geteuid() if block is None else block.id)
        argv = jailer.command(jail, self._programs.jailer, self._programs.firecracker, plan.memory)
        with contextlib.ExitStack() as undo:
            if block is not None:
                undo.callback(block.release, ended=False)
                block.note(jail.folder)
            needed = foreign.NEEDED if theirs else ()
            group, detail = make_group(plan.spec.limits, plans.host_limits(plan), needed)
            if group is not None:
                undo.callback(group.remove)
            progress.report("starting firecracker")
            listens = config.NETWORK if plan.table is not None else ""
            monitor = FirecrackerProcess(jail, argv, binds, group, block, listens=listens)
            undo.callback(monitor.end)
            rules = self._admitted(monitor, plan, undo)
            found = _quirks_of(monitor)
            monitor.perform(requests(found))
            progress.report("waiting for the guest")
            if target is not None:
                _write_template(monitor, plan, group, target)
            controls = _await(monitor, plan, rules, theirs=theirs)
            seen = report.observe(process.pidfd_of_fdinfo(monitor.pidfd), jail.uid)
            kind = wall.ForeignFirecrackerWall if theirs else FirecrackerWall
            built = kind(
                monitor,
                group,
                report.enforcement(plan, found.version, seen, controls, group, detail),
                snapshot.of(plan, found.version, image),
                found,
            )
            built.attach_network(rules)
            undo.pop_all()
        return built

    def _admitted(
        self, monitor: FirecrackerProcess, plan: FirecrackerPlan, undo: contextlib.ExitStack
    ) -> network.SandboxNetwork | None:
        listener = monitor.take_listener()
        if listener is None or plan.table is None:
            return None
        self._networked = True
        return network.admitted(listener, plan.spec, plan.table, undo)

    def _examine(self) -> Availability:
        blockers = []
        if why := privileges.no_jailer():
            fix = "run agentd as root, or use --backend qemu"
            blockers.append(Blocker(f"the jailer takes root, and this is {why}", fix))
        self._programs = programs.find() if self._found is None else self._found
        version, found = programs.examine(self._programs)
        self._version = version
        blockers += found
        virtual = self._kvm_works()
        if not virtual.usable:
            blockers.append(Blocker(virtual.what, virtual.fix))
        if blockers or version is None:
            return Availability.of(blockers, [])
        jailer.reap(self._base)
        return Availability.of([], _notes(quirks(version)))


def _write_template(
    monitor: FirecrackerProcess, plan: FirecrackerPlan, group: Group | None, target: int
) -> None:
    """Once its agent answers, and before it is told who its machine is."""
    greet(open_stream(monitor, BOOT_SECONDS), BOOT_SECONDS).close()
    template.write(monitor, Ceiling(group, plans.ceiling(plan.memory)), plan.memory, target)


def _await(
    monitor: FirecrackerProcess,
    plan: FirecrackerPlan,
    rules: network.SandboxNetwork | None,
    *,
    theirs: bool,
) -> list[str]:
    """Wait until the agent knows what its machine is; return the controls that hold in there."""
    if theirs:
        foreign.await_agent(monitor, lambda seconds: open_stream(monitor, seconds), BOOT_SECONDS)
        return []
    told = None if rules is None else network.setup(rules)
    fields = settings(plan.spec, plan.limits, told, certificates(plan.table))
    try:
        return set_up(open_stream(monitor, BOOT_SECONDS), fields, _SETUP_SECONDS)
    except SandboxError as error:
        raise network.explained(error) from error


def _quirks_of(monitor: FirecrackerProcess) -> Quirks:
    """Ask the process itself: the program may have been replaced since it was probed."""
    answer = monitor.request(ApiRequest("GET", "/version", None), _VERSION_SECONDS)
    text = answer.get("firecracker_version") if isinstance(answer, dict) else None
    if not isinstance(text, str):
        raise SandboxError("firecracker did not say its version")
    return quirks(parse(text))


def _notes(found: Quirks) -> list[str]:
    notes = [f"firecracker {found.version}"]
    notes += [why for why in (found.restore_why, found.pause_why) if why]
    hierarchy = own_hierarchy()
    if isinstance(hierarchy, str):
        notes.append(f"no ceiling on the host's memory: {hierarchy}")
    return notes + report.host_notes()


def _stored_image(name: str) -> Bootable:
    from agentd.image.build import ensure  # late: it imports much that no other backend needs

    return ensure(name, progress=progress.report_steps)
