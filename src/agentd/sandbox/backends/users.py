"""Who a sandbox's commands run as, as a request or an image names it."""

from agentd.model.errors import InvalidInput

_USERS = {"sandbox": 1000, "root": 0}
_DIGITS = 10  # of a number; thousands are more than Python reads


def parse_user(user: str | None) -> int:
    """Returns the uid inside: 1000 by default, 0 for root. Raises InvalidInput."""
    if user is None:
        return _USERS["sandbox"]
    if user in _USERS:
        return _USERS[user]
    if user.isascii() and user.isdigit() and len(user) <= _DIGITS and int(user) < 1 << 31:
        return int(user)
    raise InvalidInput(f"unknown user {user!r}", remediation="use root, sandbox or a number")
