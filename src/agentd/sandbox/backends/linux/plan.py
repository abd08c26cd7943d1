"""From a spec to what the zygote is told: pure, so that it can be compared and tested."""

from collections.abc import Sequence
from typing import Any

import msgspec

from agentd.egress.authority import Authority
from agentd.model.egress import REPLAY, EgressBounds, asks, cassette
from agentd.model.errors import InvalidInput, Refused
from agentd.model.limits import Limits
from agentd.model.mount import WORKSPACE, Mount, MountMode, check_apart
from agentd.model.secret import SecretBinding
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends.limits import on_this_kernel, processors
from agentd.sandbox.backends.users import parse_user

HOME = "/home/sandbox"
# Directories of the scratch tmpfs; a mount elsewhere needs a root of the sandbox's own.
_SCRATCH = (WORKSPACE + "/", "/tmp/", HOME + "/", "/dev/shm/", "/run/", "/var/")
MAX_MOUNTS = 32
_BYTES_PER_INODE = 4096
_MIN_INODES, _MAX_INODES = 1024, 1 << 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LinuxPlan(msgspec.Struct, frozen=True):
    """``mounts`` starts with the workspace, if one is mounted; limits have their defaults in."""

    spec: SandboxSpec
    uid: int
    mounts: tuple[Mount, ...]
    cow: bool
    private_root: bool
    limits: Limits
    inodes: int
    env: dict[str, str]
    workdir: str | None = None  # where commands begin, if not in the workspace
    table: dict[str, Any] | None = None  # by which the relay decides, of a restricted network
    authority: Authority | None = None  # whom its programs trust, where its connections are read
    bare: bool = False  # all of the root is the image's: no workspace, no /tmp of the sandbox's own

    @property
    def rw(self) -> bool:
        """Tells whether what is written in it are files of the host's."""
        return any(mount.mode is MountMode.RW for mount in self.mounts)


def make_plan(spec: SandboxSpec) -> LinuxPlan:
    """Raises InvalidInput or Refused."""
    if spec.net not in ("none", "host", "restricted"):
        raise InvalidInput(
            f"unknown network {spec.net!r}", remediation="use none, host or restricted"
        )
    mounts = _ordered(spec.mounts, image=spec.image != DEFAULT_IMAGE)
    limits = on_this_kernel(spec.limits)
    disk = limits.disk or 0
    uid = parse_user(spec.user)
    table = _table(spec)
    return LinuxPlan(
        spec=spec,
        uid=uid,
        mounts=mounts,
        cow=bool(mounts) and mounts[0].mode is MountMode.COW,
        private_root=spec.private_programs or any(not _in_scratch(m.target) for m in mounts),
        limits=limits,
        table=table,
        inodes=min(max(disk // _BYTES_PER_INODE, _MIN_INODES), _MAX_INODES),
        env=environment(processors(limits.cpus) | certificates(table) | spec.env, uid),
    )


def _table(spec: SandboxSpec) -> dict[str, Any] | None:
    if spec.net != "restricted":
        return None
    return egress_table(spec.egress, spec.egress_bounds, spec.secrets)


def egress_table(
    egress: Sequence[str], bounds: EgressBounds, secrets: Sequence[SecretBinding] = ()
) -> dict[str, Any]:
    """Return the table of a network's rules; connections to hosts of secrets are read. Raises
    InvalidInput, and Refused where nobody is there to be asked."""
    from agentd.egress.compile import compile_table

    asking = next(filter(asks, egress), "")
    if asking and bounds.allow is None and cassette(egress) != REPLAY:  # which a daemon's never is
        raise Refused(
            f"network rule {asking!r} asks, and without a daemon nobody is there to be asked",
            remediation="use one (agentd serve, --url), or write the rule without ask",
        )
    return compile_table(egress, bounds, secrets)


def with_authority(plan: LinuxPlan) -> LinuxPlan:
    """Return it with an authority of this sandbox's own, if its connections are read."""
    if plan.table is None:
        return plan
    from agentd.sandbox.backends.certificates import authority

    return msgspec.structs.replace(plan, authority=authority(plan.table))


def certificates(table: dict[str, Any] | None) -> dict[str, str]:
    """Return the variables of a sandbox whose connections are read by these rules, if it is one."""
    if table is None:
        return {}
    from agentd.sandbox.backends.certificates import variables

    return variables(table)


def environment(extra: dict[str, str], uid: int) -> dict[str, str]:
    """Return what a command starts with: nothing of the host's, and what the request names."""
    base = {
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "LOGNAME": "root" if uid == 0 else "sandbox",
        "PATH": _PATH,
        "USER": "root" if uid == 0 else "sandbox",
    }
    return base | extra


def _ordered(mounts: tuple[Mount, ...], *, image: bool) -> tuple[Mount, ...]:
    if len(mounts) > MAX_MOUNTS:
        raise InvalidInput(
            f"{len(mounts)} mounts are too many", remediation=f"at most {MAX_MOUNTS}"
        )
    check_apart(mounts, image=image)
    for mount in mounts:
        if mount.mode is MountMode.COW and mount.target != WORKSPACE:
            raise Refused(
                f"only the workspace can be copy-on-write, not {mount.target}",
                remediation="use -w PATH:cow",
            )
    return tuple(sorted(mounts, key=lambda m: m.target != WORKSPACE))


def _in_scratch(target: str) -> bool:
    return target == WORKSPACE or target.startswith(_SCRATCH)
