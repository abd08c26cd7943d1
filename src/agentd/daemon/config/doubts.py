"""What a configuration may say, and is told of all the same: it makes somebody root, cannot work on
this machine, or has no effect."""

import os
import resource
from collections.abc import Iterator

from agentd.daemon.config import templates
from agentd.daemon.config.lines import Found, Path
from agentd.daemon.config.schema import Config, PeerUser, Quota
from agentd.daemon.config.values import SHIPPED_BUNDLES
from agentd.model.egress import RESTRICTED
from agentd.model.errors import InvalidInput, Refused
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import DEFAULTS
from agentd.model.options import MIN_MEMORY, MIN_OPEN_FILES
from agentd.model.units import readable_size
from agentd.sandbox import backends
from agentd.sandbox.backends.cgroups import uncounted
from agentd.sandbox.journal.stores import MIN_BYTES

#: Limits that a group of the kernel's holds, or nothing; of a preset's, too, it depends on the
#: machine what comes of them.
COUNTED = ("memory", "cpus")


def doubtful(config: Config) -> Iterator[Found]:
    yield from _roots(config)
    yield from _twice(config)
    yield from _containers(config)
    yield from _first_key(config)
    yield from _open_files(config)
    yield from _limits(config)
    yield from _uncounted(config)
    yield from _quotas(config)
    yield from _egress(config)
    yield from _journal(config)
    yield from _templates(config)
    yield from _walls(config)


def _roots(config: Config) -> Iterator[Found]:
    """Peers that get the daemon's own rights by what they may ask for."""
    for n, peer in enumerate(config.auth.peers):
        if _is_daemon(peer):
            continue
        path: Path = ("auth", "peers", n)
        who = "everybody on this machine" if peer.uid == "*" else f"the user {peer.uid!s}"
        if not (_may(peer, "create") and (_may(peer, "run") or _may(peer, "files"))):
            continue
        if _shows_folders(config, peer):
            may = f"{who} may read and write beneath {', '.join(config.sandbox.mounts)}"
            fix = "drop the scope mount" if "mount" in peer.scopes else "narrow sandbox.mounts"
            yield path, f"{may} with the daemon's rights: {_root(peer)}", fix
        if config.sandbox.minimum == "none" and config.policy.bundle in (None, "permissive"):
            may = f"{who} may ask for isolation none, and run as the daemon"
            fix = 'raise sandbox.minimum, to "namespace" for instance'
            yield path, f"{may}: {_root(peer)}", fix


def _twice(config: Config) -> Iterator[Found]:
    """Peers of whom another row holds, which comes first."""
    first: dict[int | str, PeerUser] = {}
    for n, peer in enumerate(config.auth.peers):
        try:
            held = first.setdefault(peer.uid.resolve(), peer)
        except InvalidInput:
            continue  # the rules say that there is no such user
        other = (held.scopes, held.principal) != (peer.scopes, peer.principal)
        if held is not peer and other:
            same = f"uid = {peer.uid!s} has no effect: the user has a row before it, which holds"
            yield ("auth", "peers", n), same, "drop one of them, or join them"


def _containers(config: Config) -> Iterator[Found]:
    """A socket that is mounted into a container or a sandbox is a way out of it."""
    if config.auth.containers:
        who = "lets whoever has the socket in a container or sandbox be the user here of its uid"
        root = "root there, without a user namespace, is root here"
        fix = "drop it, and give containers an API key: agentd key create"
        yield ("auth", "containers"), f"{who}: {root}", fix


def _shows_folders(config: Config, peer: PeerUser) -> bool:
    if not config.sandbox.mounts or not _may(peer, "mount"):
        return False
    # The shipped ones that know of mounts; one's own is anybody's guess.
    bundle = config.policy.bundle
    denied = bundle == "paranoid" or (bundle == "strict" and "admin" not in peer.scopes)
    return not (bundle in SHIPPED_BUNDLES and denied)


def _is_daemon(peer: PeerUser) -> bool:
    try:
        return peer.uid.resolve() in (os.geteuid(), 0)
    except InvalidInput:
        return False  # the rules say that there is no such user


def _may(peer: PeerUser, scope: str) -> bool:
    return scope in peer.scopes or "admin" in peer.scopes


def _root(peer: PeerUser) -> str:
    them = "all of them" if peer.uid == "*" else "them"
    return f"of a daemon of root's that makes {them} root"


def _first_key(config: Config) -> Iterator[Found]:
    """A key is made by whoever the kernel, a token or a certificate vouches for."""
    if any(listen.address.path for listen in config.listen) or config.daemon.insecure:
        return
    auth = config.auth
    certificates = auth.certificates and any(listen.client_ca for listen in config.listen)
    if config.listen and auth.keys.enabled and not auth.jwt and not certificates:
        yield (
            ("listen",),
            "keys alone let anybody in here, and nobody could make the first one",
            'add [[listen]] with address = "unix:/run/agentd/agentd.sock", for agentd key create',
        )


def _open_files(config: Config) -> Iterator[Found]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        return
    for name in ("default", "max"):
        wanted = getattr(config.limits, name).open_files
        if wanted is not None and wanted > hard:
            yield (
                ("limits", name, "open_files"),
                f"is more than the hard limit of open files that a process has here, {hard}",
                f"lower it, or raise the other: LimitNOFILE={wanted} in the unit, ulimit -Hn",
            )


def _limits(config: Config) -> Iterator[Found]:
    for name in ("default", "max"):
        bounds = getattr(config.limits, name)
        if bounds.memory is not None and bounds.memory < MIN_MEMORY:
            yield (
                ("limits", name, "memory"),
                f"is too little for any sandbox, which takes {readable_size(MIN_MEMORY)} itself",
                "raise it",
            )
        if bounds.open_files is not None and bounds.open_files < MIN_OPEN_FILES:
            yield (
                ("limits", name, "open_files"),
                f"is too few for any sandbox, which takes {MIN_OPEN_FILES} itself",
                "raise it",
            )
        for what, least in (("pids", 1), ("cpus", 0.01)):
            value = getattr(bounds, what)
            if value is not None and value < least:
                yield (("limits", name, what), "is too little for any sandbox", f"give {least:g}")


def _uncounted(config: Config) -> Iterator[Found]:
    """Limits that stand in each sandbox's spec, and that only a virtual machine holds here."""
    if config.sandbox.level >= IsolationLevel.MICROVM:
        return
    held: list[tuple[Path, object]] = [
        (("limits", name), getattr(config.limits, name)) for name in ("default", "max")
    ]
    held += [
        (("template", n), one)
        for n, one in enumerate(config.template)
        if templates.spec_of(one).isolation < IsolationLevel.MICROVM
    ]
    for path, limits in held:
        for name in COUNTED:
            if getattr(limits, name) is not None and (why := uncounted(name).partition(": ")[0]):
                what = "is held by virtual machines alone here, and other sandboxes are refused"
                fix = "leave it out, run as root, or have systemd delegate a cgroup (Delegate=yes)"
                yield (*path, name), f"{what}: {why}", fix


def _quotas(config: Config) -> Iterator[Found]:
    yield from _quota(config, config.quotas.default, ("quotas", "default"))
    for name, quota in config.quotas.principals.items():
        yield from _quota(config, quota, ("quotas", "principals", name))


def _quota(config: Config, quota: Quota, path: Path) -> Iterator[Found]:
    for name in ("memory", "disk"):
        most = getattr(quota, name)
        usual = _usual(config, name)
        if most is not None and most < usual:
            yield (
                (*path, name),
                f"is less than one sandbox has that asks for nothing, {readable_size(usual)}",
                f"raise it, or lower limits.default.{name}",
            )


def _usual(config: Config, name: str) -> int:
    default, most = (getattr(bounds, name) for bounds in (config.limits.default, config.limits.max))
    usual = int(default if default is not None else getattr(DEFAULTS, name))
    if name == "disk" and default is None:
        usual = min(usual, _usual(config, "memory") // 2)
    return usual if most is None else min(usual, int(most))


def _egress(config: Config) -> Iterator[Found]:
    """What would bound a network that no sandbox here may have."""
    if RESTRICTED in config.sandbox.networks:
        return
    for name in ("allow", "host", "ca_file"):
        if getattr(config.egress, name):
            yield (
                ("egress", name),
                f"has no effect: {RESTRICTED} is not among sandbox.networks",
                f'add "{RESTRICTED}" to sandbox.networks, or drop it',
            )


def _journal(config: Config) -> Iterator[Found]:
    """What is not taken as it is said, or was by older versions alone."""
    if config.journal.process < MIN_BYTES:
        yield ("journal", "process"), "has the effect of 4M, the least there is", "give 4M or more"
    if not config.journal.compress:
        yield ("journal", "compress"), "has no effect: output on disk is compressed", "drop it"


def _templates(config: Config) -> Iterator[Found]:
    """Those whose network is more than may be granted: one is refused, unless a request for it
    names another network."""
    for n, template in enumerate(config.template):
        spec = templates.spec_of(template)
        if spec.net != RESTRICTED:
            continue
        from agentd.egress.compile import compile_table  # late: few need it

        try:
            compile_table(spec.egress, config.egress.bounds())
        except (InvalidInput, Refused) as error:
            why = ": ".join(filter(None, (error.message, error.cause)))
            yield (
                ("template", n, "net"),
                f"is refused to whoever asks for it: {why}",
                error.remediation,
            )


def _walls(config: Config) -> Iterator[Found]:
    """Backends that are neither ours nor a third party's that is installed; runtimes of none."""
    named: list[tuple[Path, str | None]]
    named = [(("sandbox", "backends"), name) for name in config.sandbox.backends]
    named += [(("pool", n, "backend"), pool.backend) for n, pool in enumerate(config.pool)]
    named += [(("template", n, "backend"), one.backend) for n, one in enumerate(config.template)]
    for path, name in named:
        if name is not None and name not in backends.BUILTIN and name not in backends.names():
            fix = f"use one of: {', '.join(backends.names())}; or install what brings it"
            yield path, f"names the backend {name!r}, and there is none", fix
    for n, one in enumerate(config.template):
        if one.runtime is not None and not backends.building(one.runtime):
            known = [each for wall in backends.names() for each in backends.runtimes(wall)]
            said = f"names the runtime {one.runtime!r}, which no backend has"
            yield ("template", n, "runtime"), said, f"use one of: {', '.join(known)}"
