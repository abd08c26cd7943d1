"""By what a sandbox is found: its name and its labels."""

import re
from collections.abc import Mapping

from agentd.model.errors import InvalidInput

SANDBOX_NAME = re.compile(r"(?!sbx-)[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
MAX_LABELS = 32
MAX_LABEL = 256  # characters of a key, and of a value
_NO_LABELS: Mapping[str, str] = {}


def check_name(name: str) -> None:
    """Check it. Raises InvalidInput for what is no name of a sandbox."""
    if not SANDBOX_NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:64]!r} is no name of a sandbox",
            remediation="give up to 63 letters, digits, dots, underscores and hyphens, a letter or "
            "digit first; 'sbx-' begins ids",
        )


def check_labels(
    labels: Mapping[str, str], before: Mapping[str, str] = _NO_LABELS
) -> dict[str, str]:
    """Return them. Raises InvalidInput for more or longer ones than are kept. Those of ``before``
    are not judged anew: an older daemon took more."""
    if len(labels) > MAX_LABELS:
        many = f"{len(labels)} labels are more than the {MAX_LABELS} allowed"
        raise InvalidInput(many, remediation="drop some")
    for key, value in labels.items():
        if before.get(key) == value:
            continue
        long = len(key) > MAX_LABEL or len(value) > MAX_LABEL
        # A filter is KEY=VALUE, and ends its key at the first "=": no other could be named.
        if not key or long or not key.isprintable() or "=" in key or "\0" in value:
            raise InvalidInput(
                f"label {key[:64]!r} is not usable",
                remediation="give printable keys without '=' and values without NUL, "
                f"of at most {MAX_LABEL} characters",
            )
    return dict(labels)
