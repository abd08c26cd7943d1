"""Ends a call whose client has gone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.model import context


@contextmanager
def readable_once(gone: context.Gone) -> Iterator[int]:
    """Yield a descriptor, the block's own, that is readable once who waits has ``gone``."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        with gone.telling(lambda: os.write(writer, b"e")):
            yield reader
    finally:
        os.close(writer)
        os.close(reader)
