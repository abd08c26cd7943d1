"""A manager that tests share, each with sandboxes of its own: to start what makes sandboxes takes a
third of such a test. The check for what a test leaves behind holds in it as well."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import pytest

from agentd.sandbox import backends
from agentd.sandbox.manager import Manager
from agentd.sandbox.ports import Backend


@contextlib.contextmanager
def lasting(load: Callable[[str], Backend] = backends.load) -> Iterator[Manager]:
    """One for a whole session; all of it is closed in the end."""
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(Manager(load)) as manager:
        # No sandbox is made ahead: it would be there after a test, and was not before it.
        patch.setattr("agentd.sandbox.backends.linux.spares.OFTEN", sys.maxsize)
        manager._finisher.soon(int)  # its thread has begun
        yield manager


@contextlib.contextmanager
def used(manager: Manager, name: str) -> Iterator[Manager]:
    """For one test, behind the wall ``name``: what that has opened in it is closed after it."""
    backend = manager.backend(name)
    zygotes = getattr(backend, "_nurseries", {})
    before = set(zygotes)
    yield manager
    for key in set(zygotes) - before:
        zygotes.pop(key).close()
    if templates := getattr(backend, "_templates", None):
        templates.close()
    shelf, manager._shelf = manager._shelf, None
    if shelf is not None:
        shelf.close()
