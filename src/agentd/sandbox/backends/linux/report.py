"""What the namespace wall says of itself: the controls in force, and what stands in its way."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agentd.linux import anyip, caps, container, landlock, overlay, seccomp
from agentd.linux.cgroup import Group
from agentd.model.availability import Blocker
from agentd.model.egress import REPLAY, EgressBounds, cassette
from agentd.model.enforcement import Control
from agentd.model.errors import Refused
from agentd.model.secret import SecretBinding
from agentd.model.spec import SandboxSpec
from agentd.model.units import readable_size
from agentd.sandbox.backends import identity, shared
from agentd.sandbox.backends.limits import agent_detail, group_controls, limit_control
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.linux.subid_range import SubidRange

if TYPE_CHECKING:
    from agentd.image.oci.values import OciImage
    from agentd.linux.probe import Facts

_NESTED = "agentd doctor -v shows what this machine offers; try outside of what agentd runs in"
_WRITABLE = (
    "overlays, whose changes count as disk and end with the sandbox; of the host's large trees, "
    "such as /usr, files are replaced and removed, not changed in place; changes lists none of it"
)
MIN_KERNEL = (5, 12)  # mount_setattr(2)
APPARMOR_PROFILE = """\
cat > /etc/apparmor.d/agentd <<'EOF'
abi <abi/4.0>,
include <tunables/global>
profile agentd {executable} flags=(unconfined) {{
  userns,
}}
EOF
apparmor_parser -r /etc/apparmor.d/agentd"""


def enforcement(
    plan: LinuxPlan,
    controls: Sequence[str],
    group: Group | None,
    detail: str,
    *,
    own_user: bool,
    digest: str,
    shown: int,
    lent: Mapping[str, str],
    given: SubidRange | str = "",
    image: "OciImage | None" = None,
    uncounted: Sequence[str] = (),
) -> dict[str, Control]:
    """Every control of the level: asked, enforced, and by what.

    ``detail`` says why there is no group; ``given`` which subordinate ids root has, or why it has
    none; ``digest`` is that of the seccomp filter;
    ``shown`` how many directories of the host's /etc and /var/lib there are; ``lent`` how each
    mount came in, by its target; ``image`` what it starts of, if anything; ``uncounted`` what of
    its files is no memory of the group's.
    """
    table = {
        "user_namespace": _fixed(_users(plan, own_user, given)),
        "pid_namespace": _fixed("the sandbox sees and signals only its own processes"),
        "mount_namespace": _fixed(_programs(plan.spec, shown, image)),
        "ipc_namespace": _fixed(),
        "uts_namespace": _fixed(),
        "hostname": _refusable("hostname", controls, "sethostname", "the host's name is seen"),
        "cgroup_namespace": _refusable(
            "cgroup_namespace", controls, "unshare", "/proc/self/cgroup shows names of the host's"
        ),
        "network": network(
            plan.spec.net, plan.spec.egress, plan.spec.secrets, bounds=plan.spec.egress_bounds
        ),
        "capabilities": _step("capabilities", controls, _capabilities(plan)),
        "no_new_privs": _step("no_new_privs", controls, "setuid and file capabilities do nothing"),
        "seccomp": _step("seccomp", controls, f"profile {_profile(plan)} {digest}"),
        "landlock": _landlock(controls),
        "agent_protected": _step("dumpable", controls, agent_detail(controls)),
        "shared": shared.of_namespaces("user_counts" in controls, own_user),
    }
    table |= group_controls(plan.spec.limits, plan.limits, group, detail)
    if uncounted and (memory := table.get("memory")) is not None and memory.enforced:
        more = ", ".join((memory.detail, *uncounted))
        table["memory"] = Control(memory.asked, memory.enforced, more)
    table |= {
        "disk": limit_control(
            plan.spec.limits.disk, plan.limits.disk, True, "one tmpfs; not in mounts"
        ),
        "open_files": _rlimit(plan.spec.limits.open_files, plan.limits.open_files, controls),
    }
    if table["pids"].enforced is False and "rlimits" in controls:
        asked, limit = plan.spec.limits.pids, plan.limits.pids
        # It counts each user by itself, and root may become others.
        alone = plan.uid != 0 or not (own_user or isinstance(given, SubidRange))
        how = "RLIMIT_NPROC in the user namespace" if alone else "RLIMIT_NPROC, of each user"
        table["pids"] = limit_control(asked, limit, alone, how)
    if plan.spec.writable:
        table["root"] = Control("writable", True, _WRITABLE)
    if image is not None:
        table["image"] = Control(plan.spec.image, True, image.digest)
    for mount in plan.mounts:
        text = f"{mount.named}, {lent[mount.target]}"
        table[f"mount {mount.target}"] = Control(str(mount.mode), True, text)
    return table


_NO_BOUNDS = EgressBounds()
_RULES = 8  # that are named; the sandbox's spec has them all


def network(
    net: str,
    egress: Sequence[str],
    secrets: Sequence[SecretBinding] = (),
    how: str = "own namespace",
    bounds: EgressBounds = _NO_BOUNDS,
) -> Control:
    """Says of a network; of one that is restricted its rules, as they were written, which secrets
    are used where, ``how`` there is no other way out, and how much may be moved."""
    if net == "host":
        return Control(net, False, "shared with the host")
    if net == "none":
        return Control(net, True, "own namespace, loopback only")
    word = cassette(egress)
    rules = [text for text in egress if text != word]
    named = " ".join(rules[:_RULES]) or "nothing"
    more = f" and {len(rules) - _RULES} rules more" if len(rules) > _RULES else ""
    if word == REPLAY:
        said = f"{how}, nothing is dialled, and {named}{more} is replayed from a cassette"
        return Control(net, True, said)
    named = f"recorded: {named}" if word else named
    used = "".join(f"; secret {each.name} at {' '.join(each.hosts)}" for each in secrets)
    return Control(net, True, f"{how}, and by the host's relay {named}{more}{used}{_much(bounds)}")


def _much(bounds: EgressBounds) -> str:
    whole, rate = bounds.net_bytes, bounds.net_rate
    in_all = "" if whole is None else f"; {readable_size(whole)} in all"
    return in_all + ("" if rate is None else f"; {readable_size(rate)} a second")


def refusal(spec: SandboxSpec, why: str) -> Refused | None:
    """Return what is said where this kernel lacks what a sandbox asks for; None where it is another
    thing that failed."""
    if spec.writable and overlay.NONE in why:
        return _not_writable(why)
    if spec.net == "restricted" and anyip.NONE in why:
        return Refused(
            "a network cannot be restricted to rules here",
            cause=why,
            remediation=f"{network_fix(why)}; or leave --net out",
        )
    return None


def network_fix(why: str) -> str:
    """Return what helps where ``why`` names what the kernel lacks to restrict a network to
    rules."""
    modules = why.rpartition(anyip.WANT)[2].replace(",", "")
    return (
        f"load the kernel's modules (modprobe -a {modules}), which its package has; "
        "in a container that is the host's to do"
    )


def _not_writable(why: str) -> Refused:
    return Refused(
        "the root cannot be made writable here",
        cause=why,
        remediation="have Linux 5.11 or newer with overlayfs (modprobe overlay), and nothing "
        "mounted in /usr; or leave --writable out, and mount a folder where it is needed",
    )


def blockers(facts: "Facts", error: str, fixes: str = "") -> list[Blocker]:
    """The known reasons first; the kernel's own words where none of them fits, or ours with the
    fix, ``fixes``, that they have."""
    found = []
    if facts.max_user_namespaces == 0:
        fix = "sysctl -w user.max_user_namespaces=65536"
        found.append(Blocker("user namespaces are switched off", fix))
    if facts.unprivileged_userns_clone == 0 and not facts.may_mount:
        fix = "sysctl -w kernel.unprivileged_userns_clone=1"
        found.append(Blocker("ordinary users may not make user namespaces", fix))
    if facts.apparmor_restricts_userns and not facts.may_mount:
        fix = APPARMOR_PROFILE.format(executable=os.path.realpath(sys.executable))
        found.append(Blocker("AppArmor restricts user namespaces to profiles that allow them", fix))
    if not facts.seccomp:
        found.append(
            Blocker("the kernel has no seccomp filters", "boot one with CONFIG_SECCOMP_FILTER")
        )
    if kernel_version(facts.kernel) < MIN_KERNEL:
        wanted = ".".join(map(str, MIN_KERNEL))
        found.append(Blocker(f"kernel {facts.kernel} is too old", f"boot Linux {wanted} or newer"))
    if facts.chroot and not found:
        fix = "enter the tree by systemd-nspawn, podman or bwrap, whose root is one of its own"
        found.append(Blocker("this is a chroot, where the kernel allows no user namespaces", fix))
    return found or [Blocker(error, fixes) if fixes else _contained(facts, error)]


def _contained(facts: "Facts", error: str) -> Blocker:
    """Return what a container takes away, and the option that gives it back."""
    held = {
        "seccomp": facts.seccomp_filter,
        "proc": facts.proc_masked,
        "apparmor": bool(facts.apparmor_profile),
    }
    around = [name for name, is_held in held.items() if is_held]
    if not facts.may_mount and facts.user_namespaces_error:
        why = f"user namespaces cannot be made: {facts.user_namespaces_error}"
        if "seccomp" in around:
            return Blocker(f"{why}, as a seccomp profile forbids it", container.fix(*around))
        return Blocker(why, container.fix(*around) if around else _NESTED)
    if not facts.maps_itself and "uid_map" in error:
        why = "root without CAP_SETFCAP cannot map itself in a user namespace"
        fix = "give agentd CAP_SETFCAP (docker run --cap-add SETFCAP), or run it as an ordinary "
        fix += "user (docker run --user UID)"
        return Blocker(why, fix)
    if "proc" in around and "mount proc" in error:
        fixing = [name for name in around if name != "seccomp"]
        why = "a sandbox can have no /proc, as something is mounted in the one here"
        return Blocker(why, container.fix(*fixing))
    return Blocker(error, container.fix(*around) if around else _NESTED)


def kernel_version(release: str) -> tuple[int, int]:
    """Returns ``(6, 18)`` of ``6.18.44-generic``."""
    major, minor, *_ = release.split("-", maxsplit=1)[0].split(".")
    return int(major), int(minor)


def _profile(plan: LinuxPlan) -> str:
    return seccomp.of_namespaces(plan.spec.net, rw=plan.rw, root=plan.uid == 0)


def _programs(spec: SandboxSpec, shown: int, image: "OciImage | None") -> str:
    if image is not None:
        how = "that can be written to" if spec.writable else "that is read-only"
        return f"a root {how}, of the image {spec.image}, {image.digest}; nothing of the host's"
    root = "read-only root of the host's programs"
    root = "root of the host's programs that can be written to" if spec.writable else root
    known = f"; {shown} directories of /etc and /var/lib, {spec.configuration.told}"
    if spec.private_programs or spec.writable:
        return f"{root}, behind overlays of the sandbox's own{known}"
    return f"{root}; inotify tells when anybody opens one{known}"


def _users(plan: LinuxPlan, own_user: bool, given: SubidRange | str) -> str:
    if isinstance(given, SubidRange):
        return (
            f"uids 0 to {given.many} inside: 0 is {_outside(own_user)}; the others are its "
            f"subordinate ids from {given.uids} on (subuid(5))"
        )
    if plan.uid or not own_user:
        alone = "" if plan.uid else ", and no other"
        why = f"; no range: {given}" if given else ""
        return f"uid {plan.uid} inside{alone}, {_outside(own_user)}{why}"
    return f"uids 0 to {identity.SIZE - 1} inside, which are its own and own nothing outside"


def _capabilities(plan: LinuxPlan) -> str:
    if plan.uid:
        return "none in any set, and none can be gained"
    held = ", ".join(caps.of_root(rw=plan.rw).values())
    return f"root has {held} over what is the sandbox's, no other"


def _outside(own_user: bool) -> str:
    if own_user:
        return "one that owns nothing outside"
    return f"the caller's own uid outside: {identity.hindrance() or 'switched off'}"


def _fixed(detail: str = "") -> Control:
    return Control("default", True, detail)


def _step(name: str, controls: Sequence[str], detail: str) -> Control:
    held = name in controls
    return Control("default", held, detail if held else "switched off")


def _refusable(name: str, controls: Sequence[str], call: str, without: str) -> Control:
    """A step that is gone without where the system call is refused."""
    held = name in controls
    return Control("default", held, "" if held else f"{call} is refused here: {without}")


def _landlock(controls: Sequence[str]) -> Control:
    version = landlock.abi_version()
    if version and "landlock" in controls:
        return Control("default", True, f"ABI {version}: {landlock.covers(version, net=False)}")
    return Control("default", False, "refused here, or off" if version else "the kernel has none")


def _rlimit(asked: int | None, value: int | None, controls: Sequence[str]) -> Control:
    return limit_control(asked, value, "rlimits" in controls, "RLIMIT_NOFILE, each process")
