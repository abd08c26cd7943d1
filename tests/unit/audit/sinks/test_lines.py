import os
import re
import socket
import threading
from pathlib import Path

import pytest

from agentd.audit.record import GENESIS, entry, seal
from agentd.audit.sinks.lines import StdoutSink, SyslogSink
from agentd.audit.sinks.port import Rejected, Unsent
from agentd.model.audit import Event, Kind
from agentd.model.errors import InvalidInput

LINE = seal(1, GENESIS, entry(Event(kind=Kind.START, fields={"a": "b\nc"}), 1.5).body)[0]
FORM = re.compile(
    rb"<109>1 1970-01-01T00:00:01\.500000Z [!-~]+ agentd %d start - (\{.*\})" % os.getpid()
)


def test_lines_go_to_a_descriptor_as_they_are() -> None:
    read_end, write_end = os.pipe()
    StdoutSink(write_end).send([LINE, LINE])
    assert os.read(read_end, 9999) == LINE * 2
    os.close(read_end)
    os.close(write_end)


def test_syslog_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        sink = SyslogSink(path)
        sink.send([LINE])
        match = FORM.fullmatch(server.recv(9999))
        assert match is not None and match[1] + b"\n" == LINE
        sink.close()


def test_syslog_over_udp_drops_what_no_datagram_holds() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        sink = SyslogSink(f"udp:127.0.0.1:{server.getsockname()[1]}")
        huge = LINE.replace(b"b\\nc", b"b" * 66_000)
        with pytest.raises(Rejected) as caught:
            sink.send([huge, LINE])
        assert caught.value.count == 1
        assert FORM.fullmatch(server.recv(9999))
        sink.close()


def test_syslog_over_tcp_counts_octets_and_says_how_many_went_through() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        got = []

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as file:
                for _ in range(2):
                    size = int(b"".join(iter(lambda: file.read(1), b" ")))
                    got.append(file.read(size))

        thread = threading.Thread(target=serve)
        thread.start()
        sink = SyslogSink(f"tcp:127.0.0.1:{server.getsockname()[1]}")
        sink.send([LINE, LINE])
        thread.join()
        assert all(FORM.fullmatch(message) for message in got) and len(got) == 2
        sink.close()
        port = server.getsockname()[1]
    with pytest.raises(Unsent) as caught:
        SyslogSink(f"tcp:127.0.0.1:{port}").send([LINE])
    assert caught.value.sent == 0


def test_no_syslog_is_there(tmp_path: Path) -> None:
    with pytest.raises(Unsent, match="No such file"):
        SyslogSink(str(tmp_path / "none")).send([LINE])


@pytest.mark.parametrize("address", ["", "udp:host", "tls:host:1", "udp::1", "tcp:host:99999"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidInput, match="udp:HOST:PORT"):
        SyslogSink(address)
