"""What works on this machine, in the words that refusals use."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentd.daemon.outlook import Outlook, outlook
from agentd.linux import probe, programs
from agentd.model.availability import Availability, Blocker
from agentd.model.errors import AgentdError
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.spec import DEFAULT_IMAGE
from agentd.policy.build import worker
from agentd.sandbox import backends
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.limits import file_max, usual
from agentd.transport.text import safe_text

if TYPE_CHECKING:
    from agentd.image.model import Image

_VERSION_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    name: str
    level: str
    requirements: tuple[str, ...]
    availability: Availability
    images: bool = False
    abilities: tuple[str, ...] = ()
    fidelity: str = ""


@dataclass(frozen=True)
class CheckedPart:
    """Something beside the walls that agentd needs."""

    name: str
    availability: Availability
    detail: bool = False  # of concern where it is not usable, or where all is asked for


@dataclass(frozen=True)
class Checkup:
    run: Outlook
    findings: list[Finding]
    parts: list[CheckedPart]
    machine: dict[str, object]


def checkup() -> Checkup:
    """Say all that there is to say, what will happen first."""
    found = findings()
    return Checkup(outlook(), found, parts(found), machine())


def parts(found: list[Finding]) -> list[CheckedPart]:
    """Say one line of each part; what there is nothing to say of is left out."""
    told = (_policy_part(), _image_part(found), _oci_part(), _network_part(found))
    return [part for part in told if part is not None]


def _policy_part() -> CheckedPart:
    """Return what decides on calls, tried in a worker as a call tries it."""
    try:
        with worker() as process:
            engine = process.engine()
    except AgentdError as error:
        what = f"agentd call and agentd serve refuse: {error.message}: {error.cause}"
        return CheckedPart("policies", Availability(False, (Blocker(what, error.remediation),)))
    notes = [engine.version]
    if engine.stand_in:
        notes.append("libatomic.so.1 is missing, and the C library takes its place")
    return CheckedPart("policies", Availability(True, (), tuple(notes)))


def _image_part(found: list[Finding]) -> CheckedPart | None:
    """Return what a virtual machine boots, where one can be had."""
    from agentd.image.build import ROUGH_SIZE
    from agentd.image.model import Corrupt, NotFound
    from agentd.image.store import Store

    if not _machines(found):
        return None
    try:
        note = _image_words(Store().get(DEFAULT_IMAGE))
    except (NotFound, Corrupt):
        note = (
            f"not built yet: the first virtual machine does it ({ROUGH_SIZE}), or now: "
            "agentd image build"
        )
    except AgentdError as error:
        what = ": ".join(filter(None, (error.message, error.cause)))
        return CheckedPart("image", Availability(False, (Blocker(what, error.remediation),)))
    return CheckedPart("image", Availability(True, (), (note,)))


def _oci_part() -> CheckedPart:
    """Return what fetches and unpacks OCI images."""
    from agentd.image.oci import tools

    lacking = []
    for name in tools.PACKAGES:
        try:
            tools.find(name)
        except AgentdError as error:
            lacking.append(Blocker(error.message, error.remediation))
    found = ", ".join(tools.PACKAGES)
    return CheckedPart("oci images", Availability.of(lacking, [] if lacking else [found]))


def _network_part(found: list[Finding]) -> CheckedPart:
    """Return whether a network can be restricted to rules, and by which walls: those on this
    kernel, which is tried, and machines, which have kernels of their own."""
    from agentd.linux import anyip
    from agentd.sandbox.backends.linux import report

    name, why = "net rules", probe.restricted_network_error()
    machines = _machines(found)
    if not why:
        without = probe.restricted_network_error(device=True)
        notes = [f"not gvisor: {without}"] if without else []
        notes += [f"{' and '.join(machines)}: by the guest's kernel"] if machines else []
        walls = "linux and oci" if without else "linux, oci and gvisor"
        return CheckedPart(name, Availability(True, (), (f"{walls}: --net pypi", *notes)), True)
    fix = report.network_fix(why) if anyip.NONE in why else "see what is said of the wall linux"
    if machines:
        fix += f"; or use --backend {machines[0]}, whose guests have a kernel of their own"
    blocker = Blocker(f"--net takes no rules on this kernel: {why}", fix)
    return CheckedPart(name, Availability(False, (blocker,)), True)


def _machines(found: list[Finding]) -> list[str]:
    """List the walls of virtual machines that are usable here."""
    microvm = IsolationLevel.MICROVM.label
    return [each.name for each in found if each.level == microvm and each.availability.usable]


def findings() -> list[Finding]:
    return [_examine(name) for name in backends.names()]


def machine() -> dict[str, object]:
    monitors = {
        "qemu": f"qemu-system-{os.uname().machine}",
        "firecracker": "firecracker",
        "jailer": "jailer",
    }
    versions = {key: _version(name) for key, name in monitors.items()}
    room = {"default_sandboxes_at_once": _room(), "user_ids": _ids()}
    return probe.gather().as_dict() | versions | {"image": _image()} | room


def _room() -> str:
    """Return how many sandboxes with default limits fit, if each took all that it may."""
    limits = usual(Limits())
    parts = [
        f"{file_max() // ((limits.open_files or 1) * (limits.pids or 1))} by open files",
        f"{_memory() // (limits.memory or 1)} by memory, if each takes all it may",
    ]
    if identity.available():
        of = identity.configured()
        with contextlib.suppress(OSError):  # root of a container, say, that may not look
            identity.reclaim()
            free = max(len(of.usable()) - identity.in_use(of) - 1, 0)  # the zygote has one
            parts.append(f"{free} by user ids")
    return "; ".join([" and ".join(parts[:2]), *parts[2:]])


def _memory() -> int:
    """Bytes, of all."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _ids() -> str:
    if why := identity.hindrance():
        return f"the caller's own: {why}{_of_root()}"
    of = identity.configured()
    taken = identity.collision(of)
    return f"{of.start} to {of.end - 1}" if taken is None else f"{taken}: set ids.start"


def _of_root() -> str:
    """Return which ids root inside has beside, where agentd is an ordinary user."""
    from agentd.sandbox.backends.linux import subid_range  # late: few ask

    found = subid_range.own()
    if isinstance(found, str):
        return f"; root inside has no other: {found}" if found else ""
    last = found.uids + found.many - 1
    return f"; root inside has the subordinate ids {found.uids} to {last}, too"


def _image(name: str = DEFAULT_IMAGE) -> str:
    """Return what a virtual machine would boot."""
    from agentd.image.store import Store

    try:
        image = Store().get(name)
    except AgentdError as error:
        return str(error)
    return _image_words(image)


def _image_words(image: "Image") -> str:
    return f"{image.name}: Linux {image.kernel_release}, {image.base}, {image.digest[:19]}"


def _version(program: str) -> str:
    """Return its path, and the first line that it says of itself; empty where it is not on PATH."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        said = programs.ask([path, "--version"], _VERSION_SECONDS)
    except OSError as error:
        return f"{path}: {error}"
    line = (said.out or said.err).partition("\n")[0]
    return f"{path}: {safe_text(line) or programs.ended(said.code)}"


def _examine(name: str) -> Finding:
    """A third party's may raise anything, wherever it is asked."""
    anything = backends.anything(name)
    try:
        backend = backends.load(name)
    except AgentdError as error:
        blocker = Blocker(str(error.message), error.remediation)
        return Finding(name, "unknown", (), Availability(False, (blocker,)))
    try:
        found = backends.examined(backend)
        return Finding(
            name,
            backend.level.label,
            backend.requirements(),
            found,
            backends.images(name),
            tuple(sorted(backends.abilities(name) - set(getattr(backend, "lacks", ())))),
            backends.fidelity(name),
        )
    except anything as error:
        blocker = backends.broken("examined", error)
        return Finding(name, backend.level.label, (), Availability(False, (blocker,)))
    finally:
        with contextlib.suppress(*anything):
            backend.close()
