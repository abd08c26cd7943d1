"""Which directories of /run and /var packages want at each boot."""

import pytest

from agentd.guest.zygote.var import made_at_boot


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("d /run/postgresql 2775 postgres postgres - -", {"/run/postgresql": False}),
        ("d /run/screen 1777 root utmp", {"/run/screen": True}),
        ("D! /run/podman 0700 root root", {"/run/podman": False}),
        ("d\t/var/cache/man 0755 man man 1w", {"/var/cache/man": False}),
        ("d$ /var/log/tool", {}),
        ("d$ /var/log/tool :~0755 -", {"/var/log/tool": False}),
        ("d /var/lib/tool - - -", {"/var/lib/tool": False}),
        ("# d /run/tool 0755", {}),
        ("f /run/tool 0644", {}),
        ("L /run/tool - - - - /etc", {}),
        ("d /run/systemd/netif 0755", {}),
        ("d /run/user 0755", {}),
        ("d /var/lib/private 0700", {}),
        ("d /run/../etc/x 0755", {}),
        ("d /run/%u 0755", {}),
        ("d /etc/x 0755", {}),
        ("d /tmp/x 1777", {}),
        ("d /run/a/b/c/d/e 0755", {}),
    ],
)
def test_lines(line: str, found: dict[str, bool]) -> None:
    assert made_at_boot([line]) == found


def test_there_is_an_end_to_them() -> None:
    assert len(made_at_boot(f"d /run/d{number} 0755" for number in range(1000))) == 48
