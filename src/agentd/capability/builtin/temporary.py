"""A name for what is being made beside its place, and its end where it is not completed."""

import contextlib
import secrets
from collections.abc import Iterator

from agentd.capability.port import Inside
from agentd.model.errors import AgentdError


@contextlib.contextmanager
def beside(inside: Inside, path: str) -> Iterator[str]:
    """A new name in the directory of ``path``, which is absolute. Nothing has it after an error.

    Scripts remove what they made, unless they were ended: then this does.
    """
    name = f".agentd-{secrets.token_hex(8)}"
    try:
        yield name
    except BaseException:
        with contextlib.suppress(AgentdError):
            inside.files.remove(f"{path.rstrip('/').rpartition('/')[0]}/{name}", recursive=True)
        raise
