"""Which container this process is in, what that takes away, and the options that give it back."""

import os
import re
from collections.abc import Mapping

_ROOT = re.compile(r" / / \S+ .*- overlay .*(/docker/|/containers/storage|containerd)")
_SYSTEM = {
    "seccomp": {
        "docker": "docker run --security-opt seccomp=unconfined",
        "podman": "podman run --security-opt seccomp=unconfined",
        "kubernetes": "securityContext: {seccompProfile: {type: Unconfined}}",
        "": "have the container's seccomp profile allow it",
    },
    "proc": {
        "docker": "docker run --security-opt systempaths=unconfined",
        "podman": "podman run --security-opt unmask=ALL",
        "kubernetes": "securityContext: {procMount: Unmasked} (and the pod's hostUsers: false)",
        "": "give the container its own /proc, with nothing mounted in it",
    },
    "apparmor": {
        "docker": "docker run --security-opt apparmor=unconfined",
        "podman": "podman run --security-opt apparmor=unconfined",
        "kubernetes": "securityContext: {appArmorProfile: {type: Unconfined}}",
        "": "have its AppArmor profile allow mounts",
    },
}


def engine(env: Mapping[str, str] = os.environ, root: str = "/") -> str:
    """Returns ``docker``, ``podman``, ``kubernetes``, ``container`` for another one, or empty."""
    if "KUBERNETES_SERVICE_HOST" in env:
        return "kubernetes"
    if os.path.exists(f"{root}run/.containerenv"):
        return "podman"
    if os.path.exists(f"{root}.dockerenv"):
        return "docker"
    if env.get("container") in ("docker", "podman"):
        return env["container"]
    marked = "container" in env or os.path.exists(f"{root}run/systemd/container")
    return "container" if marked or _ROOT.search(_read(f"{root}proc/self/mountinfo")) else ""


def masked(root: str = "/") -> bool:
    """Return whether something is mounted in /proc, or it is read-only in part: then the kernel
    lets nobody mount another one in a user namespace (mount_too_revealing())."""
    for line in _read(f"{root}proc/self/mountinfo").splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[4].startswith("/proc/") and fields[4] != _AUTOMOUNT:
            return True
    return False


def filtered() -> bool:
    """Return whether this process has a seccomp filter."""
    return re.search(r"^Seccomp:\s+2$", _read("/proc/self/status"), re.MULTILINE) is not None


def apparmor() -> str:
    """Returns the profile that confines us; empty for none."""
    text = _read("/proc/self/attr/current").strip("\0\n ")
    return text.partition(" (")[0] if text.endswith("(enforce)") else ""


def around() -> list[str]:
    """Return what of ``fix``'s things stands in the way of namespaces and mounts."""
    found = {"seccomp": filtered(), "proc": masked(), "apparmor": bool(apparmor())}
    return [name for name, held in found.items() if held]


def fix(*things: str, of: str | None = None) -> str:
    """Return what gives ``things`` (``seccomp``, ``proc``, ``apparmor``) back, as one line for
    ``of``."""
    name = engine() if of is None else of
    found = [_SYSTEM[thing].get(name, _SYSTEM[thing][""]) for thing in things]
    if name in ("docker", "podman"):  # one command with all options
        prefix = f"{name} run"
        return " ".join([prefix, *(text.removeprefix(f"{prefix} ") for text in found)])
    return ", and ".join(found)


_AUTOMOUNT = "/proc/sys/fs/binfmt_misc"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
