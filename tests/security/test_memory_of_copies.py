"""Threat: a copy of a sandbox has more memory than its limit, as its host writes the files that it
begins with.

Control: a process in the copy's group takes the room for them; what is shared is told of.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from agentd import Sandbox, SandboxError

WALLS: list[Any] = [
    "linux",
    pytest.param("oci", marks=pytest.mark.needs("runc")),
    pytest.param("gvisor", marks=pytest.mark.needs("runsc")),
]
FILL = "head -c {} /dev/zero | tr '\\0' x > large"
HOLD = "python3 -c \"x = b'x' * ({} << 20)\""


@contextlib.contextmanager
def _of_snapshot(source: Sandbox) -> Iterator[Sandbox]:
    with source.snapshot() as kept, Sandbox.create(snapshot=kept, embedded=True) as copy:
        yield copy


@contextlib.contextmanager
def _fork_by_copy(source: Sandbox) -> Iterator[Sandbox]:
    source.run("setsid sleep 1000 >/dev/null 2>&1 &", check=True)  # what runs keeps it from sharing
    (copy,) = source.fork()
    with copy:
        yield copy


@pytest.fixture(params=WALLS)
def source(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox.create(
        backend=request.param, memory="256M", disk="128M", embedded=True
    ) as sandbox:
        if not sandbox.enforcement["memory"].enforced:
            pytest.skip(sandbox.enforcement["memory"].detail)
        yield sandbox


@pytest.mark.parametrize("copied", [_of_snapshot, _fork_by_copy])
def test_what_a_copy_begins_with_counts_as_its_memory(source: Sandbox, copied: Any) -> None:
    assert source.run(HOLD.format(160)).exit_code == 0
    source.run(FILL.format("100M"), check=True)
    with copied(source) as copy:
        assert copy.run("wc -c < large").text == f"{100 << 20}\n"
        assert copy.run(HOLD.format(80)).exit_code == 0
        assert copy.run(HOLD.format(160)).cause.code == "oom"


def test_what_a_fork_shares_is_told_of_as_not_counted() -> None:
    with Sandbox.create(backend="linux", memory="256M", disk="128M", embedded=True) as source:
        source.run(FILL.format("40M"), check=True)
        (fork,) = source.fork()
        with fork:
            told, own = (one.enforcement["memory"] for one in (fork, source))
        assert (told.asked, told.enforced) == (own.asked, own.enforced)
        if own.enforced:
            assert told.detail == f"{own.detail}, 40 MiB of files that it shares"


def test_files_that_are_more_than_the_limit_make_no_sandbox() -> None:
    """Of a fork, beside what it shares: the sandbox says so, and nothing of it is left."""
    with Sandbox.create(backend="linux", memory="64M", disk="200M", embedded=True) as source:
        if not source.enforcement["memory"].enforced:
            pytest.skip(source.enforcement["memory"].detail)
        source.run(FILL.format("45M"), check=True)
        (fork,) = source.fork()
        with fork:
            fork.run(FILL.format("45M").replace("large", "more"), check=True)
            with (
                fork.snapshot() as kept,
                pytest.raises(SandboxError, match="memory of 64 MiB is too little"),
            ):
                Sandbox.create(snapshot=kept, embedded=True)
            assert fork.run("cat large more | wc -c").text == f"{90 << 20}\n"
