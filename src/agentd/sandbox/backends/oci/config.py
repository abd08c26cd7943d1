"""``config.json`` of a bundle: what the namespace wall puts in force, in the words of OCI.

Pure, so that it can be compared and tested. Sources of mounts are paths of the builder's
(``bundle``), and what is bounded beyond a process is the cgroup's, which agentd makes itself.
"""

import os
import resource
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache

from agentd.guest.zygote import root
from agentd.linux import caps, python, seccomp
from agentd.model.mount import WORKSPACE
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends import cgroups, shared
from agentd.sandbox.backends.linux.plan import HOME, LinuxPlan
from agentd.sandbox.backends.oci import bundle, filters

Json = dict[str, object]
#: (source, target, is read-only)
Mounts = Sequence[tuple[str, str, bool]]

_VERSION = "1.0.2"
_LIMITS = {
    resource.RLIMIT_NOFILE: "RLIMIT_NOFILE",
    resource.RLIMIT_NPROC: "RLIMIT_NPROC",
    resource.RLIMIT_CORE: "RLIMIT_CORE",
    resource.RLIMIT_SIGPENDING: "RLIMIT_SIGPENDING",
    resource.RLIMIT_MSGQUEUE: "RLIMIT_MSGQUEUE",
    resource.RLIMIT_MEMLOCK: "RLIMIT_MEMLOCK",
    resource.RLIMIT_NICE: "RLIMIT_NICE",
    resource.RLIMIT_RTPRIO: "RLIMIT_RTPRIO",
}
#: Directories of the scratch tmpfs: name, where it is mounted, mode.
SCRATCH = (
    ("w", WORKSPACE, 0o755),
    ("t", "/tmp", 0o1777),
    ("h", HOME, 0o755),
    ("s", "/dev/shm", 0o1777),
    ("run", "/run", 0o755),
    ("var", "/var", 0o755),
)
_OF_ANY_ROOT = 4
#: What root of a container would have beside ours, for the tests of what that stops.
_DANGEROUS = ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
_MAX_TERMINALS = 512
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_START = f"""\
import sys; sys.path.insert(0, {bundle.AGENT!r}); \
from agentd.guest.zygote.contained import main; main()"""


def of_plan(
    plan: LinuxPlan,
    mounts: Mounts,
    *,
    own_users: bool,
    argv: Sequence[str],
    shown: Collection[str] = (),
    shared: bool = False,
    without: Collection[str] = (),
) -> Json:
    """Returns the configuration for a runtime that is root of the sandbox's user namespace.

    ``mounts`` are ``(source, target, is read-only)`` of what is passed along, the workspace among
    them if it is. ``argv`` starts the agent. ``shown`` are directories of the scratch tmpfs that
    lie above what an image has there; with ``shared`` all lie above what a fork shares.
    ``own_users``: the sandbox's ids are its own; without, the caller is 0 in it, and no other.
    ``without`` names controls to leave out, and those that a runtime itself has not.
    """
    uid = plan.uid if own_users else 0
    becomes_another = not own_users and plan.uid != 0
    image = plan.spec.image != DEFAULT_IMAGE
    linux: Json = {
        "namespaces": [*_namespaces(plan.spec.net)],
        "readonlyPaths": list(_READONLY),
        "rootfsPropagation": "private",
    }
    if "seccomp" not in without:
        linux["seccomp"] = filters.of_profile(
            profile(plan), becomes_another=becomes_another, image=image
        )
    return {
        "ociVersion": _VERSION,
        "hostname": plan.spec.hostname,
        "root": {"path": bundle.ROOT, "readonly": not plan.spec.writable},
        "mounts": [
            *_kernels(),
            *_scratch(plan.spec, mounts, shown, shared=shared),
            *_given(mounts),
        ],
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": uid, "umask": 0o022},
            "args": list(argv),
            "env": _environment() if argv[0] == _interpreter() else [],
            "cwd": "/",
            "capabilities": _capabilities(plan, becomes_another, without),
            "rlimits": [] if "rlimits" in without else _rlimits(plan),
            "noNewPrivileges": "no_new_privs" not in without,
        },
        "linux": linux,
    }


def profile(plan: LinuxPlan) -> str:
    return seccomp.of_namespaces(plan.spec.net, rw=plan.rw, root=plan.uid == 0)


def writable(plan: LinuxPlan, mounts: Sequence[tuple[str, str, bool]]) -> list[str]:
    """Tells where commands may write."""
    if plan.spec.writable:
        return ["/"]
    found = [target for _, target, readonly in mounts if not readonly]
    return [*(target for _, target, _ in scratch(plan.spec)), "/dev/pts", *found]


def scratch(spec: SandboxSpec) -> tuple[tuple[str, str, int], ...]:
    """Names the directories of the scratch tmpfs: of an image /run and /var are its own."""
    return SCRATCH if spec.image == DEFAULT_IMAGE else SCRATCH[:_OF_ANY_ROOT]


def agent_argv() -> list[str]:
    """Returns what starts the agent by this interpreter."""
    return [_interpreter(), *python.ISOLATED, "-c", _START]


@cache
def agent_files() -> tuple[tuple[str, str], ...]:
    """Returns what of the host's is mounted for it: sources and targets.

    Its code, and this interpreter's files where those are not among the host's programs.
    """
    package = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    found = [(package, f"{bundle.AGENT}/agentd")]
    program = _interpreter()
    if not any(program.startswith(f"{os.path.realpath(top)}/") for top in root.PROGRAMS):
        prefix = os.path.realpath(sys.base_prefix)
        found.append((prefix, prefix))
    return tuple(found)


def is_covered(spec: SandboxSpec, mounts: Mounts) -> bool:
    """Return whether something is mounted above this interpreter, or what it imports."""
    places = {f"{target}/" for _, target, _ in (*scratch(spec), *mounts)}
    places.discard("/var/")  # what of it is the host's is there by links, as var.place has it
    files = (_interpreter(), f"{os.path.realpath(sys.base_prefix)}/")
    return any(file.startswith(place) for file in files for place in places)


@cache
def _interpreter() -> str:
    return os.path.realpath(sys.executable)


def _namespaces(net: str) -> Iterator[Json]:
    """No user namespace: the runtime is in the sandbox's own. Nor one of control groups: so is it
    in that."""
    for kind in ("pid", "mount", "ipc", "uts"):
        yield {"type": kind}
    if net != "host":
        yield {"type": "network", "path": bundle.NETWORK}


def _kernels() -> list[Json]:
    flags = ["nosuid", "noexec", "nodev"]
    devpts = ["newinstance", "ptmxmode=0666", "mode=0620", f"max={_MAX_TERMINALS}"]
    return [
        _mount("proc", "proc", "/proc", flags),
        _mount(
            "tmpfs", "tmpfs", "/dev", ["nosuid", "noexec", "mode=755", "size=64k", "nr_inodes=64"]
        ),
        _mount("devpts", "devpts", "/dev/pts", ["nosuid", "noexec", *devpts]),
        _mount("mqueue", "mqueue", "/dev/mqueue", flags),
    ]


def _environment() -> list[str]:
    return [f"{name}={value}" for name, value in python.environment().items()]


def _scratch(
    spec: SandboxSpec, mounts: Mounts, shown: Collection[str], *, shared: bool
) -> list[Json]:
    taken = {target for _, target, _ in mounts}
    top = bundle.MERGED if shared else bundle.SCRATCH
    flags = ["bind", "rw", "nosuid", "nodev"]
    return [
        _mount("bind", f"{bundle.SHOWN if name in shown else top}/{name}", target, flags)
        for name, target, _ in scratch(spec)
        if target not in taken
    ]


def _given(mounts: Sequence[tuple[str, str, bool]]) -> list[Json]:
    return [
        _mount("bind", source, target, ["rbind", "ro" if readonly else "rw", "nosuid", "nodev"])
        for source, target, readonly in mounts
    ]


def _mount(kind: str, source: str, target: str, options: list[str]) -> Json:
    return {"type": kind, "source": source, "destination": target, "options": options}


def _capabilities(
    plan: LinuxPlan, becomes_another: bool, without: Collection[str]
) -> Mapping[str, list[str]]:
    """The agent's own at first: to map the caller, who is 0 there, to another takes one
    (user_namespaces(7)), and it holds none afterwards."""
    roots = list(caps.of_root(rw=plan.rw).values())
    held = roots if plan.uid == 0 else ["CAP_SETFCAP"] * becomes_another
    held = [*held, *_DANGEROUS] if "capabilities" in without else held
    sets = dict.fromkeys(("bounding", "effective", "permitted"), held)
    return {**sets, "inheritable": [], "ambient": []}


def _rlimits(plan: LinuxPlan) -> list[Json]:
    """All but that of open files, which is the agent's to set: crun sets these for itself before it
    passes mounts on, and to a process that may have fewer files open than its user has descriptors
    on their way the kernel refuses that (unix(7))."""
    found = {resource.RLIMIT_CORE: min(resource.getrlimit(resource.RLIMIT_CORE)[1] % (1 << 64), 1)}
    found |= dict(shared.user_rlimits())
    limits = [_rlimit(number, most) for number, most in found.items()]
    return [*limits, *rlimit(resource.RLIMIT_NPROC, cgroups.process_rlimit(plan.limits.pids))]


def rlimit(number: int, wanted: int | None) -> list[Json]:
    """What bounds a resource to ``wanted``, if anything, or to what we ourselves may have."""
    if wanted is None:
        return []
    hard = resource.getrlimit(number)[1]
    return [_rlimit(number, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))]


def _rlimit(number: int, most: int) -> Json:
    return {"type": _LIMITS[number], "soft": most, "hard": most}
