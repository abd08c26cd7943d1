"""Which addresses are nobody's to grant, whatever a rule says.

Loopback and link-local are the host's own, metadata services hand out the host's credentials, and
an IPv4 address within an IPv6 one would reach what is refused by its own spelling. Addresses of
this very machine are not told by their numbers: ``relay.routes`` asks the kernel.
Sources: the IANA special-purpose registries; each cloud's page on its metadata service.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

_NEVER4 = tuple(
    (IPv4Network(text), why)
    for text, why in (
        ("0.0.0.0/8", "means this host"),
        ("127.0.0.0/8", "is loopback"),
        ("169.254.0.0/16", "is link-local, as metadata services are"),
        ("100.100.100.200/32", "is the metadata service of Alibaba Cloud"),
        ("168.63.129.16/32", "is the host's agent on Azure"),
        ("192.0.0.0/24", "is for protocols, and the metadata service of Oracle Cloud"),
        ("192.88.99.0/24", "is a relay of 6to4"),
        ("224.0.0.0/4", "is multicast"),
        ("240.0.0.0/4", "is reserved or broadcast"),
    )
)
_NEVER6 = tuple(
    (IPv6Network(text), why)
    for text, why in (
        ("::1/128", "is loopback"),
        ("::/96", "is an IPv4 address in IPv6, or none at all"),
        ("::ffff:0:0:0/96", "is an IPv4 address in IPv6 (translated)"),
        ("64:ff9b:1::/48", "is an IPv4 address in IPv6 (local NAT64)"),
        ("2001::/32", "is an IPv4 address in IPv6 (Teredo)"),
        ("2002::/16", "is an IPv4 address in IPv6 (6to4)"),
        ("fe80::/10", "is link-local"),
        ("fec0::/10", "is site-local"),
        ("ff00::/8", "is multicast"),
        ("fd00:ec2::/32", "is the metadata service of AWS"),
        ("fd20:ce::/32", "is the metadata service of Google Cloud"),
        ("fd00:c1::/32", "is the metadata service of Oracle Cloud"),
        ("fd00:42::/32", "is the metadata service of Scaleway"),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: how a network without IPv4 reaches all of it
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # RFC 5214: interface identifiers that hold an IPv4 address


@lru_cache(4096)
def parse(text: str) -> Address:
    """Return the address that a connection to ``text`` would reach: an IPv4 address that is
    spelled as ::ffff:1.2.3.4 is that one. Raises ValueError, for one with a scope too."""
    address = ip_address(text)
    if isinstance(address, IPv4Address):
        return address
    if address.scope_id is not None:
        raise ValueError(f"{text} has a scope")
    return address.ipv4_mapped or address


@lru_cache(4096)
def never(address: Address) -> str:
    """Return why nobody is let there; empty where a rule may allow it."""
    if isinstance(address, IPv4Address):
        return next((f"{address} {why}" for net, why in _NEVER4 if address in net), "")
    if address.ipv4_mapped is not None:
        return never(address.ipv4_mapped)
    if address in _NAT64:
        return never(embedded(address))
    if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
        return f"{address} is an IPv4 address in IPv6 (ISATAP)"
    return next((f"{address} {why}" for net, why in _NEVER6 if address in net), "")


def embedded(address: IPv6Address) -> IPv4Address:
    """Return the IPv4 address in its last 32 bits."""
    return IPv4Address(int(address) & 0xFFFF_FFFF)


def judged(address: Address) -> Address:
    """Return whose private networks an address is looked up in: through NAT64 it is IPv4's."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        return embedded(address)
    return address
