"""The hosts that may be asked: ``example.org``, ``*.example.org`` for all below it."""

import re
from collections.abc import Sequence

from agentd.model.capability import CallFailed
from agentd.model.errors import InvalidInput

_PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?|[0-9a-f:.]+")


def check_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Raises InvalidInput: a pattern that matches nothing, or more than it seems, is a mistake."""
    lowered = tuple(pattern.lower().removesuffix(".") for pattern in patterns)
    for pattern in lowered:
        if not _PATTERN.fullmatch(pattern):
            raise InvalidInput(
                f"{pattern[:100]!r} is no pattern of hosts",
                remediation="write example.org, *.example.org or an address",
            )
    return lowered


def check(host: str, patterns: Sequence[str]) -> None:
    """Raises CallFailed "host_refused"; no patterns allow every host."""
    if patterns and not any(_matches(host, pattern) for pattern in patterns):
        raise CallFailed(
            "host_refused",
            f"the host {host} is not one of those that may be fetched from",
            remediation="ask for another, or have the operator allow it",
        )


def _matches(host: str, pattern: str) -> bool:
    # Its dot stays: "*.example.org" is not "evil-example.org", and not the bare name.
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
