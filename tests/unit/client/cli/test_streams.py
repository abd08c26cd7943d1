"""Standard output that another process made non-blocking."""

import os
import threading

from agentd.client.cli import streams


def test_everything_is_written_to_a_pipe_that_does_not_block():
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    data = os.urandom(1 << 20)
    got = bytearray()

    def reader():
        while piece := os.read(read_end, 1 << 16):
            got.extend(piece)

    thread = threading.Thread(target=reader)
    thread.start()
    streams.write_all(write_end, data)
    os.close(write_end)
    thread.join()
    os.close(read_end)
    assert got == data
