"""Whom skopeo reaches: what is public, and the registry that was named, with its mirrors.

A registry says where its layers and its tokens are, and skopeo sends it what it is told there for a
token; so it runs in a network of its own, and agentd dials for it (``egress.dialler``).
"""

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from agentd.egress.destinations import Destinations, Place
from agentd.egress.dialler import MOST_ENTRANCES, Dialler, Entrance, Unreached
from agentd.egress.proxies import Proxies
from agentd.image.model import ImageError
from agentd.image.oci import mirrors, registry
from agentd.image.oci.source import HUB, ImageSource
from agentd.model.egress import RESTRICTED, THIS_HOST, USUAL_PORTS, network
from agentd.model.errors import InvalidInput

_SCHEMES = ("http", "https")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_HUB = ("docker.io", "registry-1.docker.io")
_LOOPBACK = ("127.0.0.1", "::1")
_PORTS = range(1080, 1180)  # for SOCKS, in a namespace where nobody else listens
# Go dials an address of the loopback itself, whatever the proxy; there is nobody in the cell.
_DIALLED = re.compile(r"dial tcp (127\.[0-9.]+|\[::1\]):([0-9]+): connect: connection refused")

# What a rule for a sandbox would mean the sandbox's own by.
_THIS_HOST = re.compile(
    r"(?:^|,)\s*((?:localhost|127\.[0-9.]+|\[::1\])(?::([0-9]+|\*))?)\s*(?=,|$)"
)


class FetchNetwork:
    """Of one program that is run. ``env`` is what it is to have; ``is_hosts``: it has the network
    of this machine, as was asked for."""

    def __init__(self, source: ImageSource, net: str | None, files: Mapping[str, bytes]) -> None:
        """``net`` is rules, or "host"; ``files`` are skopeo's own. Raises InvalidInput."""
        own = {name: os.environ[name] for name in _PROXIES if name in os.environ}
        if net is not None and (ours := _THIS_HOST.search(net)):
            raise InvalidInput(
                f"network rule {ours[1]!r} is this machine",
                remediation=f"write it as {THIS_HOST}:{ours[2] or 'PORT'}",
            )
        kind, rules = (RESTRICTED, ()) if net is None else network(net)
        if kind == "none":
            raise InvalidInput(
                "no registry is reached without a network",
                remediation="leave --net out: the registry and what is public are reached",
            )
        self._source = source
        self.env, self.is_hosts = own, kind == "host"
        self.entrances: tuple[Entrance, ...] = ()
        self._unreached: list[Unreached] = []
        if self.is_hosts:
            return
        named = [place for each in _asked(source, files) for place in _places(each)]
        self._proxies = Proxies(own)
        self._destinations = Destinations(named, rules)
        ports = self._destinations.own_ports
        here = dict(entrance for place in named for entrance in _here(place))
        here |= {Place(each, p): Place(_LOOPBACK[0], p) for each in _LOOPBACK for p in ports}
        free = (port for port in _PORTS if port not in {place.port for place in here})
        socks = {scheme: Entrance(_LOOPBACK[0], next(free), None, scheme) for scheme in _SCHEMES}
        self.entrances = (*socks.values(), *(Entrance(*at, to) for at, to in here.items()))
        if len(self.entrances) > MOST_ENTRANCES:
            raise InvalidInput(
                f"--net has {len(ports)} ports of this machine, more than are opened at once",
                remediation=f"name those that the registry leads to, {MOST_ENTRANCES // 4} at most",
            )
        self.env = {
            f"{scheme.upper()}_PROXY": f"socks5://{each.address}:{each.port}"
            for scheme, each in socks.items()
        }

    @contextlib.contextmanager
    def served(self, control: socket.socket) -> Iterator[None]:
        """Dial for a program whose network's sockets come over ``control``."""
        dialler = Dialler(control, self.entrances, self._destinations, self._proxies)
        try:
            yield
        finally:
            dialler.close()
            self._unreached = dialler.unreached

    def explained(self, error: ImageError, action: str) -> ImageError:
        """Return what a failure comes of, where that is whom it could not ask."""
        found = [each for each in self._unreached if each.barred]
        if dialled := _DIALLED.search(error.cause):
            place = Place(dialled[1].strip("[]"), int(dialled[2]))
            grant = f"{THIS_HOST}:{place.port}"
            found.append(Unreached(place, f"{place.host} is this machine itself", True, grant))
        for place, reason, _, grant in found:
            fix = "see to whoever runs the registry: nobody is let there"
            if grant:
                fix = f"if it is to be asked: agentd image {action} --net {grant}"
            elif reason.startswith("denied"):
                fix = "if it is to be asked, leave that rule out of --net"
            return ImageError(
                f"the registry leads to {place}, which is not asked: {reason}",
                cause=error.cause,
                remediation=fix,
            )
        known = registry.explained(error, self._source, action)
        if known is error and self._unreached:
            place, reason, *_ = self._unreached[-1]
            return ImageError(
                f"{place} cannot be reached",
                cause=f"{reason}: {error.cause}",
                remediation="see to its name, and to HTTPS_PROXY",
            )
        return known


@contextlib.contextmanager
def fetching(
    source: ImageSource, net: str | None, files: Mapping[str, bytes], action: str = "pull"
) -> Iterator[FetchNetwork]:
    """Give the network that skopeo is to have within. Raises as ``FetchNetwork``; ImageError with
    what to do about one that is raised within."""
    made = FetchNetwork(source, net, files)
    try:
        yield made
    except ImageError as error:
        raise made.explained(error, action) from error


def _asked(source: ImageSource, files: Mapping[str, bytes]) -> Iterator[str]:
    """The registry and its mirrors, each HOST or HOST:PORT."""
    yield from _HUB if source.registry == HUB else (source.registry,)
    yield from (each.partition("/")[0] for each in mirrors.locations(source, files))


def _places(text: str) -> list[Place]:
    """Where a registry is, that is named HOST or HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or text.endswith("]"):
        host, port = text, ""
    if port and (len(port) > 5 or not 0 < int(port) < 1 << 16):  # a mirror's: skopeo says so
        return []
    host = host.removeprefix("[").removesuffix("]")
    return [Place(host, each) for each in ((int(port),) if port else USUAL_PORTS)]


def _here(place: Place) -> Iterator[tuple[Place, Place]]:
    """What of the cell's own loopback leads to a registry of this machine's."""
    with contextlib.suppress(ValueError):
        if ip_address(place.host).is_loopback:
            yield place, place
    if place.host.lower() == "localhost":
        yield from ((Place(each, place.port), place) for each in _LOOPBACK)
