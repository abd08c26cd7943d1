"""The backends without namespaces: ``host`` (no wall) and ``landlock`` (a process's own)."""

import contextlib
import os
import socket
from collections.abc import Callable, Collection
from functools import partial

import msgspec

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.guest.zygote.scratch import remove
from agentd.linux import container, landlock, paths, seccomp
from agentd.linux.cgroup import Group
from agentd.model.availability import Availability, Blocker
from agentd.model.enforcement import Control
from agentd.model.errors import Refused, SandboxError
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import (
    WORKSPACE,
    Mount,
    MountMode,
    check_workspace,
    is_reserved,
    unmountable,
    unopened,
)
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends import configuration, identity, shared
from agentd.sandbox.backends.cgroups import explained, lacking, let_in, make_group, ready_to_start
from agentd.sandbox.backends.child import await_end, await_ready, receive, send, start_python
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.limits import (
    agent_detail,
    capabilities_detail,
    group_controls,
    limit_control,
    on_this_kernel,
    processors,
)
from agentd.sandbox.backends.wall import ProcessWall

_MONITOR = "agentd.guest.zygote.monitor"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_START_SECONDS = 60.0  # of one that hangs; one that ends is seen at once
_END_SECONDS = 15.0
# Signals and abstract sockets of the same user are out of reach from this ABI on (Linux 6.12).
_SCOPED_ABI = 6


class ProcessPlan(msgspec.Struct, frozen=True):
    spec: SandboxSpec
    limits: Limits
    mounts: tuple[Mount, ...]
    workspace: str | None  # a host path, or None for a scratch directory
    #: Whom commands of root's become to write there: its owner's uid and gid.
    writer: tuple[int, int] | None = None


class HostBackend:
    """No wall at all: the command is the caller's own process. Never chosen unless named."""

    name = "host"
    level = IsolationLevel.NONE
    images = False
    abilities = frozenset({"pause"})
    confined = False

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without

    @property
    def lacks(self) -> dict[str, str]:
        return lacking()

    def requirements(self) -> tuple[str, ...]:
        return ()

    def probe(self) -> Availability:
        return Availability(usable=True, notes=("no isolation: for trusted commands only",))

    def plan(self, spec: SandboxSpec) -> ProcessPlan:
        """Raises Refused for what takes a namespace: another user, mounts elsewhere, cow."""
        for what, wanted in (
            ("--user", spec.user is not None),
            ("--disk", spec.limits.disk is not None),
            ("sandbox.private_programs", spec.private_programs),
            ("--net with rules", spec.net == "restricted"),
        ):
            if wanted:
                raise Refused(
                    f"{what} cannot be enforced by backend {self.name}", remediation=_STRONGER
                )
        for mount in spec.mounts:
            self._check_mount(mount)
        workspace = next((m.source for m in spec.mounts if m.target == WORKSPACE), None)
        writer = self._writer(spec.mounts)
        return ProcessPlan(spec, on_this_kernel(spec.limits), spec.mounts, workspace, writer)

    def launch(self, plan: ProcessPlan) -> ProcessWall:
        with contextlib.ExitStack() as undo:
            # The monitor makes it and removes it; we do where the monitor was killed.
            scratch = os.path.join(_temporary(), f"agentd-{os.urandom(8).hex()}")
            undo.callback(remove, scratch)
            workspace = plan.workspace or os.path.join(scratch, "workspace")
            block = identity.take() if self.confined and plan.writer is None else None
            if block is not None:
                undo.callback(block.release, ended=False)
                block.note(scratch)
            config = self._config(plan, scratch, workspace, block)
            listener, pid, end = _begin(config, undo)
            group, detail = make_group(
                plan.spec.limits, plan.limits, needed=("memory", "cpus", "pids")
            )
            if group is not None:
                undo.callback(group.remove)
            with explained(group, plan.limits):
                let_in(listener, group)
                controls = await_ready(listener).controls
            enforcement = self._enforcement(plan, controls, group, detail)
            pidfd = os.pidfd_open(pid)
            undo.pop_all()
        return ProcessWall(
            pid=pid,
            pidfd=pidfd,
            listener=listener,
            group=group,
            enforcement=enforcement,
            workspace=workspace,
            without_group=detail,
            block=block,
            user=plan.writer,
            before_end=(end,),
            on_end=(lambda: remove(scratch),),
        )

    def close(self) -> None:
        pass

    def _check_mount(self, mount: Mount) -> None:
        if mount.mode is MountMode.COW or (
            mount.target != WORKSPACE and mount.mode is not MountMode.RO
        ):
            raise Refused(
                f"backend {self.name} cannot mount {mount.source} as {mount.mode}",
                remediation=_STRONGER,
            )
        if not os.path.exists(mount.source):
            raise unmountable(mount, "no such file or directory")
        check_workspace(mount, directory=os.path.isdir(mount.source))
        own = os.path.realpath(mount.source)
        if mount.target != WORKSPACE and os.path.realpath(mount.target) != own:
            there = "" if is_reserved(own) else f"mount it there, as {own}:{own}, or "
            raise Refused(
                f"backend {self.name} cannot put {mount.source} at {mount.target}: "
                "without a mount namespace a folder is at its own path",
                remediation=there + _STRONGER,
            )

    def _config(
        self, plan: ProcessPlan, scratch: str, workspace: str, block: Block | None
    ) -> dict[str, object]:
        tmp = os.path.join(scratch, "tmp")
        base = {"HOME": scratch, "LANG": "C.UTF-8", "PATH": _PATH, "TMPDIR": tmp}
        user = plan.writer if block is None else (block.id, block.id)
        if user is not None:
            # The user that it becomes has no name in /etc/passwd.
            base |= {"LOGNAME": "sandbox", "USER": "sandbox"}
        return {
            "confine": self.confined,
            "uid": user and user[0],
            "gid": user and user[1],
            "owns_nothing": block is not None,
            "scratch": scratch,
            "workspace": workspace,
            "net": plan.spec.net,
            "env": base | processors(plan.limits.cpus) | plan.spec.env,
            "open_files": plan.limits.open_files,
            "user_rlimits": shared.user_rlimits(own_user=block is not None)
            if self.confined
            else [],
            "without": sorted(self._without),
            "profile": self._profile(plan),
            "configuration": configuration.trees(plan.spec.configuration),
            "hidden": plan.spec.configuration.hide,
            "mounts": [{"source": m.source, "ro": m.mode is not MountMode.RW} for m in plan.mounts],
        }

    def _writer(self, mounts: Collection[Mount]) -> tuple[int, int] | None:
        return None

    def _profile(self, plan: ProcessPlan) -> str:
        return "none"

    def _enforcement(
        self, plan: ProcessPlan, controls: list[str], group: Group | None, detail: str
    ) -> dict[str, Control]:
        table = {"isolation": Control("default", False, "none: the command is the caller's own")}
        return table | self._limits(plan, controls, group, detail)

    def _limits(
        self, plan: ProcessPlan, controls: list[str], group: Group | None, detail: str
    ) -> dict[str, Control]:
        asked, limits = plan.spec.limits, plan.limits
        table = group_controls(asked, limits, group, detail)
        files = "RLIMIT_NOFILE, each process"
        table["open_files"] = limit_control(
            asked.open_files, limits.open_files, "rlimits" in controls, files
        )
        table["disk"] = limit_control(None, limits.disk, False, "takes a mount namespace")
        return table


class LandlockBackend(HostBackend):
    """Landlock and seccomp only: no privileges, no namespaces, works inside a container."""

    name = "landlock"
    level = IsolationLevel.PROCESS
    confined = True

    def requirements(self) -> tuple[str, ...]:
        return ("Landlock ABI 6 (Linux 6.12), or root with ABI 1", "seccomp filters")

    def probe(self) -> Availability:
        version = landlock.abi_version()
        blockers = shared.refused_calls()
        if not version:
            fix = "boot Linux 5.13 or newer with lsm=landlock,... on its command line"
            if container.filtered():
                fix += f"; or, if that is so already: {container.fix('seccomp')}"
            blockers.append(Blocker("Landlock is absent, off or refused", fix))
        elif version < _SCOPED_ABI and not identity.available():
            what = f"Landlock ABI {version} cannot keep signals from your other processes"
            blockers.append(Blocker(what, "boot Linux 6.12 or newer, or run agentd as root"))
        elif not blockers and (what := landlock.refused()):
            blockers.append(Blocker(what, container.fix("seccomp")))
        return Availability.of(blockers, [])

    def _user(self, plan: ProcessPlan, controls: list[str]) -> Control:
        if plan.writer is not None:
            text = f"uid {plan.writer[0]}, who owns the workspace, to write there"
            return Control("default", False, text)
        if why := identity.hindrance():
            return Control("default", False, f"the caller's own: {why}")
        held = "identity" in controls
        return Control("default", held, "one that owns nothing" if held else "switched off")

    def _writer(self, mounts: Collection[Mount]) -> tuple[int, int] | None:
        """Of a workspace that root's commands are to write: they become its owner, whom Landlock
        and seccomp keep from all else, as they do with an ordinary user's. Raises Refused."""
        mount = next((mount for mount in mounts if mount.mode is MountMode.RW), None)
        if mount is None or not identity.available():
            return None
        try:  # who asked for it may have put a link there since, to another user's
            found = paths.stat_plain(mount.source)
        except OSError as error:
            raise unopened(mount, error) from error
        if found.st_uid == 0 and not found.st_mode & 0o002:
            raise Refused(
                f"backend {self.name} run by root cannot write {mount.source}, which is root's: "
                "commands run as another user",
                remediation=f"mount it as {mount.source}:ro; or chown it to an ordinary user, whom "
                f"they become then; or run agentd as that user; or {_STRONGER}",
            )
        if found.st_uid == 0:
            return None  # anybody may
        if landlock.abi_version() < _SCOPED_ABI:
            raise Refused(
                f"backend {self.name} cannot run as uid {found.st_uid}, who owns {mount.source}: "
                "this kernel's Landlock cannot keep signals from that user's other processes",
                remediation=f"boot Linux 6.12 or newer, or {_STRONGER}",
            )
        if closed := _closed_above(mount.source, found):
            raise Refused(
                f"uid {found.st_uid}, who owns {mount.source}, may not go through {closed}",
                remediation=f"chmod o+x {closed}, or {_STRONGER}",
            )
        return found.st_uid, found.st_gid

    def _profile(self, plan: ProcessPlan) -> str:
        return profile_name(own_user=_own_user(plan))

    def _enforcement(
        self, plan: ProcessPlan, controls: list[str], group: Group | None, detail: str
    ) -> dict[str, Control]:
        version, profile = landlock.abi_version(), self._profile(plan)
        covered = landlock.covers(version, net=plan.spec.net == "none")

        def step(name: str, how: str) -> Control:
            held = name in controls
            return Control("default", held, how if held else "switched off")

        digest = seccomp.digest(seccomp.build(profile, inet=plan.spec.net == "host"))
        table = {
            "landlock": step("landlock", f"ABI {version}: {covered}"),
            "seccomp": step("seccomp", f"profile {profile} {digest}"),
            "user": self._user(plan, controls),
            "host_files": _host_files(controls, own_user=_own_user(plan)),
            "capabilities": step("capabilities", capabilities_detail(controls)),
            "no_new_privs": step("no_new_privs", "setuid and file capabilities do nothing"),
            "agent_protected": step(
                "dumpable",
                f"{agent_detail(controls)}; a command can end it, and with it the sandbox",
            ),
            "shared": shared.of_processes(_own_user(plan) and "identity" in controls),
            "network": Control(
                plan.spec.net,
                plan.spec.net == "none" and "seccomp" in controls,
                _NO_NETWORK if plan.spec.net == "none" else "shared with the host",
            ),
        }
        for mount in plan.mounts:
            table[f"mount {mount.source}"] = Control(str(mount.mode), True, "Landlock rule")
        return table | self._limits(plan, controls, group, detail)


def _temporary() -> str:
    """Return the folder that tempfile would use; that tries each by a file, which we leave if we
    are killed."""
    for folder in (os.environ.get("TMPDIR"), "/tmp", "/var/tmp"):
        if folder and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return os.path.abspath(folder)
    raise SandboxError(
        "there is no folder for a sandbox's files", remediation="set TMPDIR to one you may write to"
    )


def profile_name(*, own_user: bool | None = None) -> str:
    """The seccomp profile of this process's sandboxes of the process level."""
    apart = identity.available() if own_user is None else own_user
    return "process" if apart else "process-same-uid"


def _own_user(plan: ProcessPlan) -> bool:
    return plan.writer is None and identity.available()


def _closed_above(path: str, owner: os.stat_result) -> str:
    """The first folder above ``path`` that its owner may not go through; empty for none."""
    above = [path[:end] or "/" for end, letter in enumerate(path) if letter == "/"]
    for folder in above:
        found = os.stat(folder)
        bits = found.st_mode
        if found.st_uid == owner.st_uid:
            bits >>= 6
        elif found.st_gid == owner.st_gid:
            bits >>= 3
        if not bits & 0o1:
            return folder
    return ""


def _host_files(controls: list[str], *, own_user: bool) -> Control:
    """Return the control of owner, mode, times and attributes of files: Landlock has none."""
    if "host_files" in controls:
        return Control(
            "default",
            True,
            "mounted read-only, all but its own folder and a rw workspace",
        )
    if own_user:
        how = "what anybody may write can be given new times: no mount namespace can be had here"
        return Control("default", False, how)
    held = "seccomp" in controls
    how = "owner, mode, times and attributes of no file can be changed, its own among them"
    return Control("default", held, how if held else "switched off")


_STRONGER = "use --isolation namespace"
_NO_NETWORK = "no unix or internet sockets but connected pairs"


def _begin(
    config: dict[str, object], undo: contextlib.ExitStack
) -> tuple[socket.socket, int, Callable[[], bool]]:
    """The agent's listener and its pid, and what ends its monitor. Raises SandboxError."""
    ready_to_start()
    control, theirs_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undo.callback(control.close)
    listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undo.callback(listener.close)
    with theirs, theirs_control:
        end = partial(_end_monitor, control, start_python(_MONITOR, (theirs, theirs_control)))
    undo.callback(end)
    send(control, config, [], "monitor", MAX_MESSAGE)
    answer, _ = receive(control, _START_SECONDS, "monitor")
    if "error" in answer:
        raise SandboxError("the sandbox could not be built", cause=str(answer["error"]))
    pid = answer["pid"]
    assert isinstance(pid, int)  # noqa: S101  (our own process said it)
    return listener, pid, end


def _end_monitor(control: socket.socket, monitor: int) -> bool:
    """Tell the monitor to end its tree, and collect it; whether it has ended."""
    control.close()
    return await_end(monitor, _END_SECONDS)
