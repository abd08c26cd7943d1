"""What is known of names of hosts beyond how they are spelled."""

from collections.abc import Sequence

_REGISTRIES = {"ac", "co", "com", "edu", "gov", "net", "org"}  # as in co.uk: a public suffix too


def is_registry(labels: Sequence[str]) -> bool:
    """Return whether names below these labels are anybody's to have."""
    return len(labels) == 2 and labels[0] in _REGISTRIES and len(labels[1]) == 2


def punycode(host: str) -> str:
    """Return a name as DNS has it, also behind a wildcard; "xn--..." where there is none."""
    import idna

    try:
        prefix = "*." if host.startswith("*.") else ""
        return prefix + idna.encode(host.removeprefix("*."), uts46=True).decode()
    except idna.IDNAError:
        return "xn--... (punycode)"
