"""What must hold between settings that are right by themselves."""

import os
import stat
from collections.abc import Iterator

import msgspec

from agentd.auth.jwks import check_url
from agentd.auth.mtls import check_match
from agentd.daemon.config import templates
from agentd.daemon.config.lines import Found, Path
from agentd.daemon.config.schema import Config, JwtIssuer, Listen, Quota, Signed
from agentd.daemon.config.values import SHIPPED_BUNDLES
from agentd.model.configuration import ROOTS
from agentd.model.errors import InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import IMAGE_NAME
from agentd.sandbox import backends
from agentd.sandbox.backends import identity

# Their nonces are remembered for that long.
_MAX_AGE = 3600.0
_NO_GROUP = (1 << 32) - 1
_ENABLE = "enable auth.keys, or add [[auth.jwt]] or [[auth.certificates]]"


def broken(config: Config) -> Iterator[Found]:
    yield from _listening(config)
    yield from _authentication(config)
    yield from _signed(config.auth.signed)
    yield from _ranges(config)
    yield from _policy(config)
    yield from _ids(config)
    yield from _configuration(config)
    yield from _egress(config)
    yield from _audit(config)
    yield from _fetching(config)


def _audit(config: Config) -> Iterator[Found]:
    if not config.audit.sinks:
        return  # nothing of them is imported
    from agentd.audit.sinks.http import check_address
    from agentd.audit.sinks.lines import check_syslog

    for n, sink in enumerate(config.audit.sinks):
        kind, _, rest = sink.partition(":")
        try:
            if kind == "syslog" and rest:
                check_syslog(rest)
            elif kind != "syslog" and rest:
                check_address(rest if kind == "otlp" else str(sink))
        except InvalidInput as error:
            yield ("audit", "sinks", n), error.message, error.remediation


def _fetching(config: Config) -> Iterator[Found]:
    """What http.fetch.v1 would not be made with."""
    from agentd.capability.fetch import address, hosts

    for n, pattern in enumerate(config.capabilities.fetch_hosts):
        try:
            hosts.check_patterns((pattern,))
        except InvalidInput as error:
            yield ("capabilities", "fetch_hosts", n), error.message, error.remediation
    for n, network in enumerate(config.capabilities.fetch_networks):
        try:
            address.parse_networks((network,))
        except ValueError as error:
            yield ("capabilities", "fetch_networks", n), str(error), "write it as 10.1.0.0/16"


def _egress(config: Config) -> Iterator[Found]:
    names = [own.name for own in config.egress.host]
    for n, name in enumerate(names):
        if name in names[:n]:
            where: Path = ("egress", "host", n, "name")
            yield where, f"{str(name)!r} is there twice", "drop one of them"
    yield from _file(config.egress.ca_file, ("egress", "ca_file"))


def _configuration(config: Config) -> Iterator[Found]:
    for name in ("host_configuration_show", "host_configuration_hide"):
        for path in getattr(config.sandbox, name):
            if not path.startswith(ROOTS):
                fix = "write it as /etc/maven"
                yield ("sandbox", name), f"{path} is not in /etc or /var/lib", fix


def _listening(config: Config) -> Iterator[Found]:
    if not config.listen:
        yield ("listen",), "the daemon listens nowhere", 'add [[listen]] with address = "unix:..."'
    seen: set[str] = set()
    for n, listen in enumerate(config.listen):
        path: Path = ("listen", n)
        if (text := str(listen.address)) in seen:
            yield (*path, "address"), f"{text} is there twice", "drop one of them"
        if listen.address.path or listen.address.port:  # port 0 is another one each time
            seen.add(text)
        if not listen.serves:
            yield (*path, "serves"), "no door is open there", 'name one, as ["rest"]'
        for name in sorted({door for door in listen.serves if listen.serves.count(door) > 1}):
            yield (*path, "serves"), f"{name!r} is there twice", "drop one of them"
        yield from _tls(listen, path)
        if not listen.address.path:
            yield from _tcp(config, listen, path)
        elif listen.group is not None and not _is_group(listen.group):
            missing = f"there is no group {listen.group!r}"
            yield (*path, "group"), missing, "give another, or its number"


def _is_group(group: str) -> bool:
    """A number needs no entry of its own; 4294967295 is none for chown(2), which leaves it then."""
    if group.isascii() and group.isdigit():
        return int(group[:20]) < _NO_GROUP
    import grp

    try:
        grp.getgrnam(group)
    except KeyError:
        return False
    return True


def _tls(listen: Listen, path: Path) -> Iterator[Found]:
    if listen.address.path and (listen.cert or listen.key or listen.client_ca):
        yield path, "a unix socket has no TLS", "drop cert, key and client_ca"
        return
    for one, other in (("cert", "key"), ("key", "cert"), ("client_ca", "cert")):
        if getattr(listen, one) and not getattr(listen, other):
            yield (*path, one), f"needs {other!r} beside it", f"add {other}"
    for name in ("cert", "key", "client_ca"):
        yield from _file(getattr(listen, name), (*path, name))
    if listen.key:
        yield from _secret(listen.key, (*path, "key"))


def _tcp(config: Config, listen: Listen, path: Path) -> Iterator[Found]:
    where = (*path, "address")
    if listen.group is not None:
        yield (*path, "group"), "only a unix socket has a group", "drop it"
    nobody = "nobody could authenticate on it"
    if listen.address.loopback:
        if not config.daemon.insecure and not _authenticates(config, listen):
            fix = f"{_ENABLE}; daemon.insecure = true lets in everybody on this machine"
            yield where, nobody, fix
        return
    if config.daemon.insecure:
        yield (
            where,
            "with daemon.insecure the network would be let in without a credential",
            "listen on 127.0.0.1, or drop insecure",
        )
    elif not _authenticates(config, listen):
        yield where, nobody, _ENABLE
    if not listen.cert and not listen.plain:
        yield (
            where,
            "credentials and output would cross the network in the clear",
            "give cert and key, or plain = true behind a proxy that has TLS",
        )


def _authenticates(config: Config, listen: Listen) -> bool:
    auth = config.auth
    return auth.keys.enabled or bool(auth.jwt) or bool(auth.certificates and listen.client_ca)


def _authentication(config: Config) -> Iterator[Found]:
    auth = config.auth
    for n, peer in enumerate(auth.peers):
        try:
            peer.uid.resolve()
        except InvalidInput as error:
            yield ("auth", "peers", n, "uid"), error.message, "give another, or its number"
        if peer.uid == "*" and peer.principal is not None:
            yield (
                ("auth", "peers", n, "principal"),
                "all users would be one principal, and see each other's sandboxes",
                "drop it: each is called uid:N",
            )
    if _over(auth.keys.default_ttl, auth.keys.max_ttl):
        yield ("auth", "keys", "default_ttl"), "is more than max_ttl", "lower it"
    for n, issuer in enumerate(auth.jwt):
        yield from _issuer(issuer, ("auth", "jwt", n))
    for name in ("name", "issuer"):
        values = [getattr(issuer, name) for issuer in auth.jwt]
        for n, value in enumerate(values):
            if value in values[:n]:
                yield ("auth", "jwt", n, name), f"{value!r} is there twice", "drop one of them"
    for n, certificate in enumerate(auth.certificates):
        try:
            check_match(certificate.match)
        except InvalidInput as error:
            yield ("auth", "certificates", n, "match"), error.message, error.remediation
    if auth.certificates and not any(listen.client_ca for listen in config.listen):
        yield (
            ("auth", "certificates"),
            "no listener asks for certificates",
            "give client_ca in a [[listen]]",
        )


def _issuer(issuer: JwtIssuer, path: Path) -> Iterator[Found]:
    for name in ("audience", "algorithms"):
        if not getattr(issuer, name):
            yield (*path, name), "is empty", "name at least one"
    if (issuer.jwks_file is None) == (issuer.jwks_url is None):
        yield path, "its keys must come from one place", "give either jwks_file or jwks_url"
    if issuer.jwks_url is not None:
        try:
            check_url(issuer.jwks_url)
        except (InvalidInput, ValueError) as error:
            yield (*path, "jwks_url"), str(error), "give an https:// URL"
    yield from _file(issuer.jwks_file, (*path, "jwks_file"))


def _signed(signed: Signed) -> Iterator[Found]:
    path: Path = ("auth", "signed")
    if signed.max_age > _MAX_AGE:
        yield (*path, "max_age"), "is more than an hour", "lower it"
    if signed.skew > signed.max_age:
        yield (*path, "skew"), "is more than max_age", "lower it"
    if signed.signers is None:
        if signed.required:
            yield (*path, "required"), "nobody could sign", "give signers, a directory of keys"
        return
    if not os.path.isdir(signed.signers):
        where = f"there is no directory {str(signed.signers)!r}"
        yield (*path, "signers"), where, "give another, or create it"
        return
    from agentd.auth.signers import Signers

    for problem in Signers(signed.signers).problems:
        yield (*path, "signers"), problem, "fix it, or take it out"


def _ranges(config: Config) -> Iterator[Found]:
    if _over(config.leases.default, config.leases.max):
        yield ("leases", "default"), "is more than leases.max", "lower it, or raise leases.max"
    for field in msgspec.structs.fields(type(config.limits.max)):
        default = getattr(config.limits.default, field.name)
        if _over(default, getattr(config.limits.max, field.name)):
            yield (
                ("limits", "default", field.name),
                f"is more than limits.max.{field.name}",
                "lower it, or raise the other",
            )
    if config.approvals.max < 1:
        yield ("approvals", "max"), "nothing could ever be approved", "give 1 or more"
    if config.journal.process > config.journal.total:
        yield ("journal", "process"), "is more than journal.total", "lower it"
    if not config.http.connections:
        yield ("http", "connections"), "nobody could connect", "give 1 or more"
    yield from _backends(config)
    yield from _pools(config)
    yield from templates.broken(config)
    yield from _quota(config.quotas.default, ("quotas", "default"))
    for name, quota in config.quotas.principals.items():
        yield from _quota(quota, ("quotas", "principals", name))


def _backends(config: Config) -> Iterator[Found]:
    """Third parties' levels are not known before they are loaded."""
    allowed = config.sandbox.backends
    known = [backends.BUILTIN[name].level for name in allowed if name in backends.BUILTIN]
    if allowed and len(known) == len(allowed) and max(known) < config.sandbox.level:
        yield (
            ("sandbox", "backends"),
            f"none of them is as strong as sandbox.minimum, {config.sandbox.minimum}",
            "add one that is, or lower sandbox.minimum",
        )


def _pools(config: Config) -> Iterator[Found]:
    for n, pool in enumerate(config.pool):
        path: Path = ("pool", n)
        level = IsolationLevel.parse(pool.isolation)
        if not IMAGE_NAME.fullmatch(pool.image):
            fix = "begin with a lower case letter or a digit; agentd image ls lists them"
            yield (*path, "image"), f"{pool.image!r} is not a name", fix
        if pool.min > pool.max:
            yield (*path, "min"), "is more than max", "lower it, or raise max"
        if level < config.sandbox.level:
            least = f"is less than sandbox.minimum, {config.sandbox.minimum}"
            yield (*path, "isolation"), least, templates.NOBODY
        allowed = config.sandbox.backends
        if pool.backend is not None and allowed and pool.backend not in allowed:
            named = f"{pool.backend} is not among sandbox.backends"
            yield (*path, "backend"), named, templates.NOBODY


def _quota(quota: Quota, path: Path) -> Iterator[Found]:
    for name in ("requests", "burst"):
        if getattr(quota, name) == 0:
            yield (*path, name), "nobody could ask for anything", "give more; none is no bound"


def _policy(config: Config) -> Iterator[Found]:
    bundle = config.policy.bundle
    shipped = bundle in SHIPPED_BUNDLES
    if bundle is not None and not shipped and not os.path.isdir(bundle):
        yield ("policy", "bundle"), f"there is no folder {str(bundle)!r}", "give that of a bundle"
    digest = config.policy.sha256
    if digest is not None and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        yield ("policy", "sha256"), "is no SHA-256", "give its 64 hex digits in lower case"
    if digest is not None and bundle is None:
        yield ("policy", "sha256"), "there is no policy that could have it", "name a bundle"


def _ids(config: Config) -> Iterator[Found]:
    wrong = identity.check(config.ids.range())
    if wrong is not None:
        yield ("ids", wrong[0]), *wrong[1:]
    elif identity.available() and (taken := identity.collision(config.ids.range())) is not None:
        yield ("ids", "start"), taken, "give another start, which nobody else uses"


def _file(name: str | None, path: Path) -> Iterator[Found]:
    if name is None:
        return
    try:
        found = os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        yield path, f"there is no file {str(name)!r}", "give another, or create it"
    except OSError:
        return  # whoever checks may not see what the daemon will
    else:
        if not stat.S_ISREG(found.st_mode):
            yield path, f"{str(name)!r} is no file", "give another"


def _secret(name: str, path: Path) -> Iterator[Found]:
    try:
        mode = os.stat(name).st_mode
    except OSError:
        return
    if mode & 0o007:
        yield path, "everybody on this machine may use the private key", f"chmod o= {name}"


def _over(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound
