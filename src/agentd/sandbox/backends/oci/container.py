"""What all walls of OCI runtimes have in common: how one is asked for, heard and ended."""

import contextlib
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.image.runtime import store
from agentd.linux import landlock, privileges, probe, process, seccomp
from agentd.linux.waiting import is_ready
from agentd.model.availability import Availability, Blocker
from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError, InvalidInput, Refused, SandboxError
from agentd.model.limits import Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends import identity, leases, shared
from agentd.sandbox.backends.cgroups import explained, let_in, make_group, own_hierarchy
from agentd.sandbox.backends.child import Ended, await_ready, send
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import image as images
from agentd.sandbox.backends.linux import loans, report, shared_layer
from agentd.sandbox.backends.linux.base import NamespaceBackend, beneath, furnish
from agentd.sandbox.backends.linux.born import room
from agentd.sandbox.backends.linux.cow import OverlayWall
from agentd.sandbox.backends.linux.disk import Coming, SandboxDisk
from agentd.sandbox.backends.linux.network import admitted, rest
from agentd.sandbox.backends.linux.plan import LinuxPlan, make_plan, with_authority
from agentd.sandbox.backends.linux.shared_layer import FileIds
from agentd.sandbox.backends.linux.wall import LinuxWall
from agentd.sandbox.backends.oci import config, runtimes
from agentd.sandbox.backends.oci.ahead import (
    Begun,
    ContainerKind,
    ContainersAhead,
    kind_of,
    settled,
)
from agentd.sandbox.backends.oci.request import Lent, has_image, lend, needed, of_plan
from agentd.sandbox.backends.oci.runtimes import Runtime
from agentd.sandbox.backends.oci.starting import Contained, Launcher, await_started

#: What a runtime may take; then it is ended by its pid, and what it started.
_RUNTIME_SECONDS = 30.0
#: A runtime and where its program is.
Called = tuple[Runtime, str]


class ContainerBackend(NamespaceBackend):
    """``without`` leaves controls out, for the tests that prove what each one stops."""

    name: str
    #: By which it can be built; the first that is there is taken where none is named.
    runtimes: Mapping[str, Runtime]
    #: Without a copy-on-write workspace, and with one.
    walls: tuple[type[LinuxWall], type[OverlayWall]] = LinuxWall, OverlayWall

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without
        self._lock = threading.Lock()
        self._launcher: Launcher | None = None
        self._versions: dict[str, str] = {}
        self._agent: store.AgentRuntime | None = None
        self._making = threading.Lock()
        self._ahead = ContainersAhead()
        self._allowed = False  # whether this kernel is known to let walls be built
        self._networked = False  # whether the relay was needed

    def probe(self) -> Availability:
        """Looks for the runtimes, and has the launcher enter its namespaces. What this kernel was
        found to allow is not asked anew, before each sandbox, as that takes a fork of us."""
        found = {name: at for name, runtime in self.runtimes.items() if (at := runtime.find())}
        if not found:
            return Availability.of([Blocker(*runtimes.absent(self.runtimes.values()))], [])
        if not self._allowed and (blockers := _blockers()):
            return Availability.of(blockers, [])
        try:
            self._started().wait_ready()
        except InvalidInput:  # no wall is to blame for ids that are said wrong
            raise
        except (AgentdError, OSError) as error:
            said = getattr(error, "cause", "") or str(error)
            return Availability.of(report.blockers(probe.gather(), said), [])
        self._allowed = True
        notes = [f"{name} {self._version(program)}" for name, program in found.items()]
        hierarchy = own_hierarchy()
        if isinstance(hierarchy, str):
            notes.append(f"no memory or CPU limits: {hierarchy}")
        return Availability.of([], notes)

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        """Raises InvalidInput, NotFound where there is no such image, and Refused, also where the
        runtime that is named is not there."""
        plan = make_plan(images.found(spec))
        self._runtime(spec.runtime)
        for what, wanted in (
            ("sandbox.private_programs", spec.private_programs),
            ("a writable root of the host's programs", spec.writable and not has_image(plan)),
        ):
            if wanted:
                raise Refused(
                    f"backend {self.name} cannot have {what}", remediation="use --backend linux"
                )
        return plan

    def close(self) -> None:
        waiting = self._ahead.close()
        with self._lock:
            launcher, self._launcher = self._launcher, None
        if launcher is not None:
            launcher.close()
        for begun in waiting:
            begun.end(ended=True)
        with self._making:
            agent, self._agent = self._agent, None
        if agent is not None:
            agent.close()
        if self._networked:
            rest()

    def _launch(self, plan: LinuxPlan, kept: str | None) -> LinuxWall:
        called = self._runtime(plan.spec.runtime)
        with contextlib.ExitStack() as undo:
            launcher = self._started()
            image = images.of_spec(plan.spec, undo, kept)
            plan = with_authority(plan if image is None else image.planned(plan))
            taken = leases.take(plan.mounts, undo)
            sources = [loans.open_source(mount, undo) for mount in plan.mounts]
            layer = None if kept is None else shared_layer.of_fork(kept)
            if layer is not None:
                undo.callback(layer.close)
            lent = lend(plan, sources, taken, launcher, image, layer)
            kind = None
            if kept is None and not self._without:
                files = None if image is None else image.files()
                kind = kind_of(plan, files, called[1], launcher)
            begun = self._ahead.take(kind, launcher)
            wall = begun and self._from_ahead(begun, plan, called, lent, undo)
            if wall is None:
                begun = self._begin(plan, launcher, called, lent, undo, kept=kept)
                wall = self._wall(plan, self._await(begun, plan, called, undo), called, lent, undo)
            if kind is not None:
                make = functools.partial(self._make_ahead, kind, settled(plan), called)
                self._ahead.want(kind, make)
            wall.attach_leases(taken)
            undo.pop_all()
            for fd in sources:
                os.close(fd)
            if image is not None:
                image.close()  # the wall has its lease
        if not launcher.alive():
            wall.kill()
            raise Ended("the launcher ended unexpectedly")
        return wall

    def _begin(
        self,
        plan: LinuxPlan,
        launcher: Launcher,
        called: Called,
        lent: Lent,
        undo: contextlib.ExitStack,
        *,
        kept: str | None = None,
        ahead: bool = False,
    ) -> Begun:
        """Ask for a sandbox, and wait for nothing; ``ahead``: the request for it is yet to come."""
        runtime, program = called
        block = identity.take(launcher.ids) if launcher.own_users else None
        if block is not None:
            undo.callback(block.release, ended=False)
        argv = runtime.argv(program, f"agentd-{os.urandom(6).hex()}", self._flags(plan))
        request = of_plan(plan, lent, block, argv, kept=kept is not None, seconds=_RUNTIME_SECONDS)
        request |= self._bundle(plan, lent, block)
        asked = self._agent_request(plan, lent, block)
        asked |= {} if ahead else {"env": plan.env}
        listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(listener.close)
        answers, theirs_answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(answers.close)
        with theirs, theirs_answers, contextlib.ExitStack() as passed:
            fds = [theirs.fileno(), theirs_answers.fileno()]
            for fd in lent.opened(launcher, block):
                fds.append(fd)
                passed.callback(os.close, fd)
            launcher.start(request, fds)
        bounds = self._bounds(plan.limits)
        group, detail = make_group(plan.spec.limits, bounds, needed(plan, block))
        if group is not None:
            undo.callback(group.remove)
        with explained(group, plan.limits):
            if request["lend"]:
                user = None if block is None else block.id
                _fill(answers, launcher, lambda disk: lent.fill(disk, user, kept, launcher, group))
            try:
                let_in(answers, group)
                send(listener, asked, [], "sandbox", MAX_MESSAGE)
            except Ended:  # what it ended of it has said before
                await_started(answers, 0, runtime.name, launcher)
                raise
        return Begun(launcher, answers, listener, block, group, detail, undo)

    def _await(
        self, begun: Begun, plan: LinuxPlan, called: Called, undo: contextlib.ExitStack
    ) -> Contained:
        """Wait until its first process runs."""
        listener, block, group, detail = begun.listener, begun.block, begun.group, begun.detail
        with explained(group, plan.limits), begun.answers:
            runtime, seconds = called[0].name, _RUNTIME_SECONDS * 2
            started = await_started(begun.answers, seconds, runtime, begun.launcher)
        pidfd, disk, *others = started.fds
        sockets, namespaces = others[: started.sockets], others[started.sockets :]
        for fd in (pidfd, disk, *namespaces):
            undo.callback(os.close, fd)
        opened = [undo.enter_context(socket.socket(fileno=fd)) for fd in sockets]
        undo.callback(_kill, pidfd)
        held = started.held
        return Contained(
            begun.launcher, pidfd, disk, listener, block, group, detail, held, opened, namespaces
        )

    def _from_ahead(
        self, begun: Begun, plan: LinuxPlan, called: Called, lent: Lent, undo: contextlib.ExitStack
    ) -> LinuxWall | None:
        """None where nothing came of it: one that is started for the request will do."""
        with contextlib.suppress(SandboxError, OSError), contextlib.ExitStack() as freed:
            freed.callback(begun.end)
            send(begun.listener, {"env": plan.env}, [], "sandbox", MAX_MESSAGE)
            born = self._await(begun, plan, called, freed)
            if not is_ready(born.pidfd):
                wall = self._wall(plan, born, called, lent, freed)
                undo.push(freed.pop_all())
                return wall
        return None

    def _make_ahead(self, kind: ContainerKind, plan: LinuxPlan, called: Called) -> Begun | None:
        """One for the next request of the kind; None where the image's files are others by now, or
        the launcher has ended: a thread that will end starts none."""
        with self._lock:
            launcher = self._launcher
        if launcher is None or not launcher.alive():
            return None
        with contextlib.ExitStack() as lease, contextlib.ExitStack() as undo:
            image = images.of_spec(plan.spec, lease)
            files = None if image is None else image.files()
            if kind != kind_of(plan, files, called[1], launcher):
                return None
            lent = lend(plan, [], [], launcher, image)
            begun = self._begin(plan, launcher, called, lent, undo, ahead=True)
            return begun._replace(undo=undo.pop_all())

    def _wall(
        self,
        plan: LinuxPlan,
        born: Contained,
        called: Called,
        lent: Lent,
        undo: contextlib.ExitStack,
    ) -> LinuxWall:
        disk, source = _disk(plan, born, lent, undo), beneath(plan, lent.loans, undo)
        with explained(born.group, plan.limits):
            controls = await_ready(born.listener).controls
        runtime = f"{called[0].name} {self._version(called[1])}"
        self._networked = self._networked or plan.table is not None
        network = admitted(plan, born.sockets, undo)
        wall = self.walls[plan.cow](
            pid=process.pidfd_of_fdinfo(born.pidfd),
            pidfd=born.pidfd,
            listener=born.listener,
            group=born.group,
            enforcement=self._enforcement(plan, controls, born, lent, runtime),
            without_group=born.detail,
            block=born.block,
            workdir=plan.workdir,
        )
        return furnish(wall, disk, network, lent.image, source)

    # --- what differs ---

    def _flags(self, plan: LinuxPlan) -> tuple[str, ...]:
        """Of the runtime, for this sandbox."""
        return ()

    def _bundle(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        """``config``, what the runtime is told, ``agent``, which files of the host's the agent has,
        and any field of the request that is another than usual."""
        raise NotImplementedError

    def _enforcement(
        self, plan: LinuxPlan, controls: list[str], born: Contained, lent: Lent, runtime: str
    ) -> Enforcement:
        """``controls`` are what the agent put in force, ``runtime`` its name and version."""
        raise NotImplementedError

    def _bounds(self, limits: Limits) -> Limits:
        """Those of the cgroup, where the runtime itself needs something in it."""
        return limits

    def _agent_request(self, plan: LinuxPlan, lent: Lent, block: Block | None) -> dict[str, object]:
        return {
            "becomes": plan.uid if block is None and plan.uid else None,
            "uid": plan.uid,
            "image": has_image(plan),
            "landlock_abi": landlock.abi_version(),
            "open_files": plan.limits.open_files,
            "filter": seccomp.build(config.profile(plan)).hex(),
            "rw": plan.rw,
            "without": sorted(self._without),
            "writable": config.writable(plan, lent.mounts(plan)),
        }

    # --- what they share ---

    def _agents(self) -> store.AgentRuntime:
        """The agent's own interpreter: an image may have none."""
        with self._making:
            if self._agent is None:
                self._agent = store.ensure()
            return self._agent

    def _runtime(self, name: str | None) -> tuple[Runtime, str]:
        """Raises InvalidInput for a name that none has, Refused for one that is not installed."""
        if name is not None and name not in self.runtimes:
            raise InvalidInput(
                f"unknown OCI runtime {name!r}",
                remediation=f"use one of: {', '.join(self.runtimes)}",
            )
        wanted = list(self.runtimes.values()) if name is None else [self.runtimes[name]]
        for runtime in wanted:
            program = runtime.find()
            if program is not None:
                return runtime, program
        what, fix = runtimes.absent(wanted)
        raise Refused(what, remediation=fix)

    def _started(self) -> Launcher:
        with self._lock:
            launcher = self._launcher
            if launcher is not None and not launcher.alive():
                launcher.close()
                launcher = None
            if launcher is None:
                launcher = self._launcher = Launcher()
            return launcher

    def _version(self, program: str) -> str:
        if program not in self._versions:
            self._versions[program] = runtimes.version(program)
        return self._versions[program]


def _blockers() -> list[Blocker]:
    """What of this kernel's is in the way of every wall of a runtime."""
    if refused := shared.refused_calls():
        return refused
    if error := probe.user_namespaces_error():
        return report.blockers(probe.gather(), error)
    if privileges.is_machine_root() and not privileges.may_mount():
        what = "root without CAP_SYS_ADMIN cannot give each sandbox a user of its own here"
        fix = "give agentd CAP_SYS_ADMIN, or run it as an ordinary user (docker run --user UID)"
        return [Blocker(what, fix)]
    return []


def _fill(answers: socket.socket, launcher: Launcher, fill: Callable[[int], None]) -> None:
    """Put on its disk what it is to begin with; nothing of it runs yet."""
    (disk,) = await_started(answers, _RUNTIME_SECONDS, "the launcher", launcher).fds
    try:
        fill(disk)
    finally:
        os.close(disk)


def _disk(plan: LinuxPlan, born: Contained, lent: Lent, undo: contextlib.ExitStack) -> SandboxDisk:
    """Its descriptors are freed by ``undo`` where there comes no wall to own it."""
    wanted = room(plan, lent.loans)
    if lent.shared is not None or not born.namespaces:
        return SandboxDisk(born.disk, wanted, lent.shared, held=tuple(born.namespaces))
    ids = FileIds(plan.uid, identity.SIZE if plan.uid == 0 else 1)
    seer = os.dup(born.pidfd)
    undo.callback(os.close, seer)
    coming = Coming((*born.namespaces, seer), born.launcher, ids)
    return SandboxDisk(born.disk, wanted, coming=coming)


def _kill(pidfd: int) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
