"""The ``oci`` backend: a runtime that the machine has, runc or crun, builds the wall."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.linux import landlock, paths, privileges, process
from agentd.linux.cgroup import Group
from agentd.model.availability import Availability, Blocker
from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError, InvalidInput, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends import configuration, identity, leases, shared
from agentd.sandbox.backends.cgroups import explained, let_in, make_group, own_hierarchy
from agentd.sandbox.backends.child import Ended, await_ready, send
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import loans
from agentd.sandbox.backends.linux.loans import Loan
from agentd.sandbox.backends.linux.plan import LinuxPlan, make_plan
from agentd.sandbox.backends.oci import bundle, config, report, runtimes
from agentd.sandbox.backends.oci.runtimes import RUNTIMES, Runtime
from agentd.sandbox.backends.oci.starting import Launcher, await_started
from agentd.sandbox.backends.wall import NamespaceWall
from agentd.sandbox.volume_lease import VolumeLease

#: What a runtime may take; then it is ended by its pid, and what it started.
_RUNTIME_SECONDS = 30.0
_READY_SECONDS = 30.0


class OciBackend:
    """``without`` leaves controls out, for the tests that prove what each one stops."""

    name = "oci"
    level = IsolationLevel.NAMESPACE
    #: By which it can be built; the first that is there is taken where none is named.
    known: Mapping[str, Runtime] = RUNTIMES
    runtimes = tuple(RUNTIMES)
    images = False
    volumes = True
    writable = False
    abilities = frozenset({"pause"})
    wall = NamespaceWall

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without
        self._lock = threading.Lock()
        self._launcher: Launcher | None = None
        self._versions: dict[str, str] = {}

    def requirements(self) -> tuple[str, ...]:
        return (
            "runc or crun",
            "Linux 5.12 or newer",
            "user namespaces",
            "seccomp filters",
            "cgroups for memory and CPU limits",
        )

    def probe(self) -> Availability:
        """Looks for the runtimes, and has the launcher enter its namespaces."""
        found = {name: at for name, runtime in self.known.items() if (at := runtime.find())}
        if not found:
            return Availability.of([Blocker(*_absent(self.known.values()))], [])
        if refused := shared.refused_calls():
            return Availability.of(refused, [])
        if privileges.is_machine_root() and not privileges.may_mount():
            what = "root without CAP_SYS_ADMIN cannot give each sandbox a user of its own here"
            fix = "give agentd CAP_SYS_ADMIN, or run it as an ordinary user (docker run --user UID)"
            return Availability.of([Blocker(what, fix)], [])
        try:
            self._started().wait_ready()
        except InvalidInput:  # no wall is to blame for ids that are said wrong
            raise
        except (AgentdError, OSError) as error:
            fix = "agentd doctor -v shows what this machine offers"
            said = getattr(error, "cause", "") or str(error)
            return Availability.of([Blocker(said, fix)], [])
        notes = [f"{name} {self._version(program)}" for name, program in found.items()]
        hierarchy = own_hierarchy()
        if isinstance(hierarchy, str):
            notes.append(f"no memory or CPU limits: {hierarchy}")
        return Availability.of([], notes)

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        """Raises InvalidInput or Refused, also where the runtime that is named is not there."""
        plan = make_plan(spec)
        self._runtime(spec.runtime)
        for what, wanted, instead in (
            ("sandbox.private_programs", spec.private_programs, "use --backend linux"),
            ("a workspace that is copy-on-write", plan.cow, "use --backend linux"),
            ("an image", spec.image != DEFAULT_IMAGE, "use --backend linux"),
        ):
            if wanted:
                raise Refused(f"backend {self.name} cannot have {what}", remediation=instead)
        return plan

    def launch(self, plan: LinuxPlan) -> NamespaceWall:
        try:
            return self._launch(plan)
        except Ended:  # the launcher was killed: the next one will do
            return self._launch(plan)

    def close(self) -> None:
        with self._lock:
            launcher, self._launcher = self._launcher, None
        if launcher is not None:
            launcher.close()

    def _launch(self, plan: LinuxPlan) -> NamespaceWall:
        runtime, program = self._runtime(plan.spec.runtime)
        with contextlib.ExitStack() as undo:
            launcher = self._started()
            taken = leases.take(plan.mounts, undo)
            sources = [loans.open_source(mount, undo) for mount in plan.mounts]
            lent = _lend(plan, sources, taken, launcher)
            block = identity.take(launcher.ids) if launcher.own_users else None
            if block is not None:
                undo.callback(block.release, ended=False)
            born = self._start(plan, launcher, (runtime, program), lent, block, undo)
            wall = self._wall(plan, born, f"{runtime.name} {self._version(program)}", lent)
            wall.attach_leases(taken)
            undo.pop_all()
            for fd in sources:
                os.close(fd)
        if not launcher.alive():
            wall.kill()
            raise Ended("the launcher ended unexpectedly")
        return wall

    def _start(
        self,
        plan: LinuxPlan,
        launcher: Launcher,
        called: tuple[Runtime, str],
        lent: list[Loan],
        block: Block | None,
        undo: contextlib.ExitStack,
    ) -> "Contained":
        runtime, program = called
        listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(listener.close)
        answers, theirs_answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, theirs_answers, answers, contextlib.ExitStack() as passed:
            fds = [theirs.fileno(), theirs_answers.fileno()]
            for loan in lent:
                fds.append(loans.mount_fd(loan, launcher, block))
                passed.callback(os.close, fds[-1])
            shown = configuration.trees(plan.spec.configuration)
            request = _request(plan, runtime, program, lent, block, shown)
            request |= self._bundle(plan, _mounts(lent), block)
            launcher.start(request, fds)
            theirs.close()
            theirs_answers.close()
            bounds = self._bounds(plan.limits)
            group, detail = make_group(plan.spec.limits, bounds, _needed(plan, block))
            if group is not None:
                undo.callback(group.remove)
            with explained(group, plan.limits):
                let_in(answers, group)
                send(listener, self._agent_request(plan, lent, block), [], "sandbox", MAX_MESSAGE)
                held, pidfd = await_started(answers, _RUNTIME_SECONDS * 2, runtime.name)
        undo.callback(os.close, pidfd)
        undo.callback(_kill, pidfd)
        return Contained(pidfd, listener, block, group, detail, held, len(shown))

    def _wall(
        self, plan: LinuxPlan, born: "Contained", runtime: str, lent: list[Loan]
    ) -> NamespaceWall:
        with explained(born.group, plan.limits):
            controls, _ = await_ready(born.listener, _READY_SECONDS)
        pid = process.pidfd_of_fdinfo(born.pidfd)
        return self.wall(
            id_=str(pid),
            pid=pid,
            pidfd=born.pidfd,
            listener=born.listener,
            group=born.group,
            enforcement=self._enforcement(plan, [*controls, *born.held], born, runtime, lent),
            workspace="/workspace",
            without_group=born.detail,
            block=born.block,
            workdir=plan.workdir,
        )

    def _agent_request(
        self, plan: LinuxPlan, lent: list[Loan], block: Block | None
    ) -> dict[str, object]:
        return {
            "becomes": plan.uid if block is None and plan.uid else None,
            "uid": plan.uid,
            "env": plan.env,
            "image": False,
            "landlock_abi": landlock.abi_version(),
            "profile": config.profile(plan),
            "without": sorted(self._without),
            "writable": config.writable(_mounts(lent)),
        }

    def _runtime(self, name: str | None) -> tuple[Runtime, str]:
        """Raises InvalidInput for a name that none has, Refused for one that is not installed."""
        if name is not None and name not in self.known:
            raise InvalidInput(
                f"unknown OCI runtime {name!r}",
                remediation=f"use one of: {', '.join(self.known)}",
            )
        wanted = list(self.known.values()) if name is None else [self.known[name]]
        for runtime in wanted:
            program = runtime.find()
            if program is not None:
                return runtime, program
        what, fix = _absent(wanted)
        raise Refused(what, remediation=fix)

    def _bundle(
        self, plan: LinuxPlan, mounts: config.Mounts, block: Block | None
    ) -> dict[str, object]:
        """What the runtime is told, and which files of the host's the agent has."""
        own = block is not None
        of_plan = config.of_plan(plan, mounts, own_users=own, without=self._without)
        return {"config": of_plan, "agent": config.agent_files()}

    def _bounds(self, limits: Limits) -> Limits:
        """Those of the cgroup, where the runtime itself needs something in it."""
        return limits

    def _enforcement(
        self,
        plan: LinuxPlan,
        controls: list[str],
        born: "Contained",
        runtime: str,
        lent: list[Loan],
    ) -> Enforcement:
        return report.enforcement(
            plan,
            controls,
            born.group,
            born.detail,
            runtime=runtime,
            own_user=born.block is not None,
            shown=born.shown,
            lent={loan.mount.target: loan.how for loan in lent},
        )

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


class Contained(NamedTuple):
    """A sandbox whose first process runs, and whose agent was not heard yet."""

    pidfd: int
    listener: socket.socket
    block: Block | None
    group: Group | None
    detail: str  # why there is no group
    held: list[str]
    shown: int


def _absent(wanted: Iterable[Runtime]) -> tuple[str, str]:
    """What is missing, and the fix."""
    named = {runtime.program or runtime.name: runtime.install() for runtime in wanted}
    return f"{' or '.join(named)} is not installed", "; or ".join(named.values())


def _request(
    plan: LinuxPlan,
    runtime: Runtime,
    program: str,
    lent: list[Loan],
    block: Block | None,
    shown: tuple[str, ...],
) -> dict[str, object]:
    name = f"agentd-{os.urandom(6).hex()}"
    return {
        "maps": _maps(plan.uid, block),
        "owner": None if block is None else block.id,
        "net": plan.spec.net,
        "configuration": shown,
        "hidden": plan.spec.configuration.hide,
        "argv": runtime.argv(program, name),
        "seconds": _RUNTIME_SECONDS,
        "disk": plan.limits.disk,
        "inodes": plan.inodes,
        "uid": plan.uid if block is not None else 0,
        "folders": [(name, mode) for name, _, mode in config.SCRATCH],
        "user_counts": shared.user_counts(),
        "mounts": [(str(n), paths.is_folder(loan.source)) for n, loan in enumerate(lent)],
    }


def _maps(uid: int, block: Block | None) -> list[tuple[int, int, int]]:
    """Ids inside, and what they are outside. The sandbox's user is the first of its block: folders
    are lent to that one. Root of the namespace, if another, is whom the runtime alone runs as."""
    if block is None:
        return [(0, 0, 1)]
    if uid == 0:
        return [(0, block.id, identity.SIZE)]
    return [(0, block.id + 1, 1), (uid, block.id, 1)]


def _mounts(lent: list[Loan]) -> list[tuple[str, str, bool]]:
    return [
        (f"{bundle.MOUNTS}/{index}", loan.mount.target, loan.readonly)
        for index, loan in enumerate(lent)
    ]


def _lend(
    plan: LinuxPlan,
    sources: Sequence[int],
    taken: Sequence[VolumeLease | None],
    launcher: Launcher,
) -> list[Loan]:
    disk = plan.limits.disk or 0
    lent = loans.all_of(plan.mounts, sources, taken, launcher, disk, own_user=launcher.own_users)
    for loan in lent:
        if loan.copy is not None:
            raise Refused(
                f"backend oci cannot mount {loan.mount.source}: {loan.unmapped}",
                remediation="keep it on ext4, xfs or btrfs; or use --backend linux, which copies "
                "it",
            )
    return lent


def _needed(plan: LinuxPlan, block: Block | None) -> tuple[str, ...]:
    """The limits that nothing but a group can hold; root may become others, and processes are
    counted by user otherwise."""
    everyone = plan.uid == 0 and block is not None
    return ("memory", "cpus", "pids") if everyone else ("memory", "cpus")


def _kill(pidfd: int) -> None:
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
