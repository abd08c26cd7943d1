"""Cookies of servers inside: all ports share one site, and each has cookies of its own there.

Those that a port's server sets come out under a name that says which port set them, for the paths
of that port and for this host alone; those and no others go in again, under their own names. So a
sandbox sees neither the cookies of another one, nor those of other sites on the same host.
"""

from hashlib import sha256

_MARK = b"agentd-%b-"
_OURS = frozenset((b"domain", b"path"))


def mark(prefix: bytes) -> bytes:
    return _MARK % sha256(prefix).hexdigest()[:16].encode()


def inwards(values: list[bytes], prefix: bytes) -> bytes:
    """Return what of the Cookie headers this port has set; empty where there is nothing."""
    own = mark(prefix)
    pairs = (pair.strip() for value in values for pair in value.split(b";"))
    return b"; ".join(pair.removeprefix(own) for pair in pairs if pair.startswith(own))


def outwards(value: bytes, prefix: bytes, target: bytes) -> bytes | None:
    """Return a Set-Cookie header as seen from here; None where it sets nothing that could come
    back.

    ``target`` is what was asked for: without a Path a cookie is of that folder (RFC 6265, 5.1.4).
    """
    pair, *attributes = value.split(b";")
    name, equals, content = pair.partition(b"=")
    if not equals or not name.strip():
        return None
    path = target.partition(b"?")[0].rpartition(b"/")[0] or b"/"
    kept = []
    for attribute in attributes:
        key, _, given = attribute.strip().partition(b"=")
        if key.strip().lower() == b"path" and given.strip().startswith(b"/"):
            path = given.strip()
        if key.strip().lower() not in _OURS and key:
            kept.append(attribute.strip())
    # Without its last slash it is of the port itself as well, and of no other port.
    if path == prefix or path.startswith(prefix + b"/"):
        path = path.removeprefix(prefix)  # it knows where it is, from X-Forwarded-Prefix
    where = b"Path=" + prefix + (b"" if path == b"/" else path)
    return b"; ".join((mark(prefix) + name.strip() + b"=" + content.strip(), where, *kept))
