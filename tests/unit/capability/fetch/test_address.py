from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.capability.fetch.address import is_allowed, is_public, parse_networks


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1"),  # noqa: S104
        *("127.255.255.254", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255"),
        *("192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255"),
        *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
        *("255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"),
        *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1"),
        *("2001:0:53aa:64c:0:0:80ff:fffe", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1"),
        *("2002:7f00:1::", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fe80::1%2", "fec0::1", "ff02::1", "2a00::5efe:7f00:1", "::1%1"),
        *("2a00::200:5efe:a00:1", "", "localhost", "127.1", "1.2.3.4 ", "2606:4700::1%lo"),
    ],
)  # fmt: skip
def test_special_addresses_are_refused(text: str) -> None:
    assert not is_allowed(text, ())


@pytest.mark.parametrize(
    "text",
    [
        *("8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0"),
        *("192.0.1.1", "223.255.255.255", "169.253.255.255", "2606:4700::1111", "2a00:1450::1"),
    ],
)
def test_public_addresses_are_not(text: str) -> None:
    assert is_allowed(text, ())


def test_a_network_is_allowed_by_name_and_no_other_with_it() -> None:
    allowed = parse_networks(["127.0.0.0/8", "fd12::/16"])
    assert is_allowed("127.0.0.1", allowed)
    assert is_allowed("fd12::1", allowed)
    assert not is_allowed("::1", allowed)
    assert not is_allowed("::ffff:127.0.0.1", allowed)
    assert not is_allowed("10.0.0.1", allowed)


@given(st.ip_addresses())
def test_what_python_calls_special_is_never_public(address: IPv4Address | IPv6Address) -> None:
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    assert not (special and is_public(address))


@given(st.ip_addresses(v=4))
def test_ipv4_in_disguise_is_never_public(address: IPv4Address) -> None:
    number = int(address)
    hidden = [
        number,
        0xFFFF << 32 | number,
        0x64_FF9B << 96 | number,
        0x2002 << 112 | number << 80,
        0x2001 << 112 | ~number & 0xFFFF_FFFF,
    ]
    assert not any(is_public(ip_address(IPv6Address(value))) for value in hidden)
