"""Addresses that nobody is granted, by every spelling that reaches them."""

import pytest

from agentd.capability.fetch.address import is_allowed
from agentd.egress import addresses

NEVER = [
    "0.0.0." + "0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.169.254", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1",
    "2001:0:1::1", "2002:7f00:1::", "2002:808:808::", "fe80::1", "fec0::1", "ff02::1",
    "fd00:ec2::254", "fd20:ce::254", "fd00:42::42", "2001:db8::5efe:7f00:1", "2600::200:5efe:a00:1",
]  # fmt: skip
GRANTABLE = [
    "8.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "203.0.113.80", "1.1.1.1",
    "2606:4700::1111", "fd00::2", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("text", NEVER)
def test_nobody_is_granted(text: str) -> None:
    assert addresses.never(addresses.parse(text))


@pytest.mark.parametrize("text", NEVER)
def test_http_fetch_goes_to_none_of_them_either(text: str) -> None:
    assert not is_allowed(text, ())


@pytest.mark.parametrize("text", GRANTABLE)
def test_a_rule_may_grant(text: str) -> None:
    assert addresses.never(addresses.parse(text)) == ""


@pytest.mark.parametrize("text", ["", "fe80::1%eth0", "8.8.8", "0x7f.1", "localhost", "1.2.3.4 "])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        addresses.parse(text)


def test_behind_nat64_it_is_the_address_in_it_that_is_private_or_not() -> None:
    assert str(addresses.judged(addresses.parse("64:ff9b::10.1.2.3"))) == "10.1.2.3"
