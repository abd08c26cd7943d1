"""What this machine's kernel offers, as facts. Nothing is changed by asking."""

import errno
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

from agentd.linux import abi, anyip, container, kvm, landlock, net, privileges, subids, veth
from agentd.linux.cgroup import scope
from agentd.linux.kernel import KERNEL, Kernel

_APPARMOR_USERNS = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"


@dataclass(frozen=True)
class Facts:
    """None means that the kernel does not say, or has no such thing."""

    kernel: str
    machine: str
    uid: int
    may_mount: bool  # as the machine's root, without a user namespace
    maps_itself: bool  # in a user namespace of its own
    landlock_abi: int  # 0: absent or off at boot
    seccomp: bool  # filters can be installed
    cgroup_version: int  # 2, 1, or 0 where none is mounted
    cgroup_writable: bool  # child groups of our own group can be made
    cgroup_scope: str  # that of the user's systemd which this process is in; empty for none
    user_namespaces: bool
    user_namespaces_error: str  # why not, or empty
    chroot: bool  # and that is why: the kernel allows none in one
    apparmor_restricts_userns: bool | None
    max_user_namespaces: int | None
    unprivileged_userns_clone: int | None  # Debian's switch
    kvm: bool  # a guest ran
    kvm_error: str
    kvm_fix: str
    yama_ptrace_scope: int | None
    container: str  # docker, podman, kubernetes, container for another; empty for none
    seccomp_filter: bool  # this process has one
    proc_masked: bool  # something is mounted in /proc
    apparmor_profile: str  # that confines this process
    subordinate_ids: str  # what an ordinary user may map, or why there are none; empty for root

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def gather(kernel: Kernel = KERNEL) -> Facts:
    version = cgroup_version()
    userns_error = user_namespaces_error(kernel)
    virtual = kvm.probe()
    restricted = read_int(_APPARMOR_USERNS)
    switch = read_int("/proc/sys/kernel/unprivileged_userns_clone")
    may_mount = privileges.may_mount()
    allowed = may_mount or not (restricted or switch == 0)
    return Facts(
        kernel=os.uname().release,
        machine=abi.MACHINE,
        uid=os.geteuid(),
        may_mount=may_mount,
        maps_itself=privileges.maps_itself(),
        landlock_abi=landlock.abi_version(kernel),
        seccomp=seccomp_filters(),
        cgroup_version=version,
        cgroup_writable=cgroup_writable(version),
        cgroup_scope=scope.current(),
        user_namespaces=not userns_error,
        user_namespaces_error=userns_error,
        chroot=allowed and in_chroot(userns_error),
        apparmor_restricts_userns=None if restricted is None else restricted != 0,
        max_user_namespaces=read_int("/proc/sys/user/max_user_namespaces"),
        unprivileged_userns_clone=switch,
        kvm=virtual.usable,
        kvm_error=virtual.what,
        kvm_fix=virtual.fix,
        yama_ptrace_scope=read_int("/proc/sys/kernel/yama/ptrace_scope"),
        container=container.engine(),
        seccomp_filter=container.filtered(),
        proc_masked=container.masked(),
        apparmor_profile=container.apparmor(),
        subordinate_ids=subordinate_ids(),
    )


def seccomp_filters() -> bool:
    """Asks for CONFIG_SECCOMP_FILTER: the sysctl directory exists only with it (Linux 4.14)."""
    return os.path.exists("/proc/sys/kernel/seccomp/actions_avail")


def cgroup_version(root: str = "/sys/fs/cgroup") -> int:
    if os.path.exists(f"{root}/cgroup.controllers"):
        return 2
    return 1 if os.path.isdir(f"{root}/memory") or os.path.isdir(f"{root}/pids") else 0


def cgroup_writable(version: int, root: str = "/sys/fs/cgroup") -> bool:
    """Return whether our own group's directory takes children; False on a read-only mount too."""
    if version == 0:
        return False
    controller = "memory" if version == 1 else ""
    path = own_cgroup(_read("/proc/self/cgroup"), controller)
    if path is None:
        return False
    directory = os.path.join(root, controller, path.lstrip("/"))
    # Inside a cgroup namespace or a bind mount the path may not resolve: the mount's root is ours.
    if not os.path.isdir(directory):
        directory = os.path.join(root, controller)
    return os.access(directory, os.W_OK)


def own_cgroup(text: str, controller: str) -> str | None:
    """Finds the path of ``controller`` in /proc/self/cgroup's text; "" is the unified hierarchy."""
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return path
    return None


def user_namespaces_error(kernel: Kernel = KERNEL) -> str:
    """Return why a user namespace with a mount namespace in it cannot be made; empty when it can.

    Tried in a child. Ubuntu's AppArmor restriction lets the user namespace be made and takes its
    capabilities away: only the mount namespace shows it.
    """

    def attempt() -> None:
        kernel.unshare(abi.CLONE_NEWUSER)
        kernel.unshare(abi.CLONE_NEWNS)

    return _refusal_of(attempt)


def restricted_network_error(*, device: bool = False) -> str:
    """Return why a network cannot be restricted to rules; empty when it can. ``device``: behind a
    kernel that writes packets, which takes a device more.

    Tried in a child, as a sandbox does it: what it makes ends with it.
    """

    def attempt() -> None:
        try:
            KERNEL.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNET)
        except OSError as error:
            why = f"user and network namespaces cannot be made: {error.strerror}"
            raise OSError(error.errno, why) from None
        if device:
            veth.capture()
        else:
            net.loopback_up()
            anyip.capture()

    return _refusal_of(attempt)


def _refusal_of(attempt: Callable[[], None]) -> str:
    """Makes an attempt in a child, with which all that it makes ends; returns what refused it, and
    nothing where it was not refused."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads; it runs nothing of theirs
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            attempt()
            code = 0
        except OSError as error:
            os.write(writer, (error.strerror or str(error)).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (said or f"what tries it ended with {code}") if code else ""


def in_chroot(error: str) -> bool:
    """Return whether a user namespace was refused because our root is not the mount namespace's.

    The kernel says EPERM then (unshare(2)), as seccomp filters do.
    """
    if error != os.strerror(errno.EPERM):
        return False
    mounts, status = _read("/proc/self/mountinfo"), _read("/proc/self/status")
    root_seen = any(line.split()[4:5] == ["/"] for line in mounts.splitlines())
    # A chroot to a mount point is seen by nothing else than that no filter can be to blame.
    return bool(mounts) and (not root_seen or "\nSeccomp:\t0\n" in status)


def subordinate_ids() -> str:
    """Finds the range that this ordinary user may map beside its own id, or why there is none."""
    if os.geteuid() == 0:
        return ""
    found = subids.own()
    return found if isinstance(found, str) else f"{found.uids.start} to {found.uids.stop - 1}"


def read_int(path: str) -> int | None:
    try:
        return int(_read(path))
    except ValueError:
        return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
