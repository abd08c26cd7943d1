"""From the configuration to the sockets: bound here, or passed in by systemd."""

import ipaddress
import os
import socket
import ssl
from collections.abc import MutableMapping

from agentd.daemon.config.schema import Config, Listen
from agentd.ingest.web import listeners
from agentd.ingest.web.listeners import Listener
from agentd.linux import runtime_dir
from agentd.model.errors import InvalidInput


def listen(config: Config, environ: MutableMapping[str, str]) -> list[tuple[Listener, Listen]]:
    """Listen on all of them, or none, each with what is said of it.

    A socket from systemd takes the place of the ``[[listen]]`` with its address, which says what
    TLS it has; one that no ``[[listen]]`` names is refused, for nobody said what it may be used
    for. Raises InvalidInput, Conflict where somebody listens there already.
    """
    passed = listeners.inherited(environ)
    found: list[tuple[Listener, Listen]] = []
    try:
        for wanted in config.listen:
            mine = [one for one in passed if _is(one, wanted)]
            tls = _tls(wanted)
            for one in mine:
                one.tls = tls
                passed.remove(one)
            found += [(one, wanted) for one in mine or _bind(wanted, tls)]
        if passed:
            raise InvalidInput(
                f"systemd passes {passed[0].name}, which no [[listen]] names",
                remediation="write the same address in agentd.socket and in agentd.toml",
            )
    except BaseException:
        for one in [*(one for one, _ in found), *passed]:
            one.close()
        raise
    return found


def _bind(wanted: Listen, tls: ssl.SSLContext | None) -> list[Listener]:
    address = wanted.address
    try:
        if address.path:
            _own_folder(address.path)
            return [listeners.unix(address.path, mode=int(wanted.mode), group=wanted.group)]
        return listeners.tcp(address.host, address.port, tls=tls)
    except OSError as error:
        fix = "give another with --listen unix:PATH" if address.path else "give another port"
        raise InvalidInput(
            f"cannot listen on {address}",
            cause=error.strerror or str(error),
            remediation=f"{fix}, or see whether you may use it",
        ) from error


def _own_folder(path: str) -> None:
    """Make the folder of the socket of last resort. Raises OSError where that is another's."""
    folder = os.path.dirname(path)
    if folder in runtime_dir.fallbacks(os.environ, os.geteuid()):
        runtime_dir.own(folder, os.geteuid())


def _tls(wanted: Listen) -> ssl.SSLContext | None:
    if wanted.cert is None:
        return None
    return listeners.tls_context(wanted.cert, wanted.key, wanted.client_ca)


def _is(one: Listener, wanted: Listen) -> bool:
    """Return whether it listens where ``wanted`` says."""
    name, address = one.socket.getsockname(), wanted.address
    if one.socket.family == socket.AF_UNIX:
        return bool(address.path) and os.path.realpath(name) == os.path.realpath(address.path)
    if address.path or name[1] != address.port:
        return False
    if address.host == "localhost":
        return ipaddress.ip_address(name[0]).is_loopback
    return str(name[0]) == address.host
