"""Where a daemon is: ``unix:PATH``, ``http://HOST:PORT`` or ``https://HOST:PORT``."""

import os
import re
import socket
import stat
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple

from agentd.model.errors import InvalidInput

URL = "AGENTD_URL"
API_KEY = "AGENTD_API_KEY"
CA, CERT, CERT_KEY = "AGENTD_CA", "AGENTD_CERT", "AGENTD_CERT_KEY"
SYSTEM_SOCKET = "/run/agentd/agentd.sock"
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253})(:(?P<port>\d{1,5}))?/?",
    re.ASCII,
)
_MAX_PATH = 107  # bytes of sun_path before its NUL, unix(7)


class Address(NamedTuple):
    """``path`` of a unix socket, or ``host`` and ``port``; how to prove who asks, if at all.

    ``ca``, ``cert`` and ``cert_key`` are PEM files; without ``ca`` the system's hold.
    """

    path: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    api_key: str = ""
    ca: str = ""
    cert: str = ""
    cert_key: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"<Address {self}>"  # never the key


def parse(url: str, api_key: str | None = None, env: Mapping[str, str] = os.environ) -> Address:
    """Parse an address; ``api_key`` None is the environment's. Raises InvalidInput."""
    key = env.get(API_KEY, "") if api_key is None else api_key
    if not isinstance(key, str) or not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidInput("the API key is not one", remediation="it looks like agd_ID_SECRET")
    if isinstance(url, str) and url.startswith("unix:"):
        return Address(path=_socket(url), api_key=key)
    match = _HOST.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        raise InvalidInput(
            f"{url!r} is not the address of a daemon",
            remediation="write it as unix:/path, http://host:port or https://host:port",
        )
    tls = match["scheme"] == "https"
    port = int(match["port"] or _PORTS[match["scheme"]])
    if not 0 < port < 65536:
        raise InvalidInput(f"{url!r} has no usable port", remediation="give one from 1 to 65535")
    return Address(
        host=match["host"].strip("[]"),
        port=port,
        tls=tls,
        api_key=key,
        ca=env.get(CA, "") if tls else "",
        cert=env.get(CERT, "") if tls else "",
        cert_key=env.get(CERT_KEY, "") if tls else "",
    )


def given(
    url: str | None, api_key: str | None = None, env: Mapping[str, str] = os.environ
) -> Address | None:
    """Return the address in ``url``, or in the environment; None where neither says one.

    Raises InvalidInput, for an empty ``url`` too: where a variable of the caller's is not set, no
    other daemon is meant, and not this process.
    """
    found = (env.get(URL) or None) if url is None else url
    return None if found is None else parse(found, api_key, env)


def default(api_key: str | None = None, env: Mapping[str, str] = os.environ) -> Address | None:
    """Return the usual socket that is there: the user's own daemon, else the machine's. What a
    daemon that was killed has left, and nobody listens at, is passed over where there is another.
    """
    there = [path for path in sockets(env) if _is_socket(path)]
    if not there:
        return None
    path = there[0] if len(there) == 1 else next(filter(_listens, there), there[0])
    return parse(f"unix:{path}", api_key, env)


def running(
    url: str | None = None, api_key: str | None = None, env: Mapping[str, str] = os.environ
) -> Address | None:
    """Return the daemon that is named, else one that listens at its usual place; None where none
    does."""
    found = given(url, api_key, env)
    if found is not None:
        return found
    found = default(api_key, env)
    return found if found is not None and _listens(found.path) else None


def sockets(env: Mapping[str, str] = os.environ) -> list[str]:
    """Return the user's own, in the order of their likelihood, and the machine's."""
    from agentd.linux import runtime_dir

    own = [f"{folder}/agentd.sock" for folder in runtime_dir.folders(env, os.geteuid())]
    return list(dict.fromkeys([*own, SYSTEM_SOCKET]))


def find(
    url: str | None, api_key: str | None = None, env: Mapping[str, str] = os.environ
) -> Address:
    """Return the daemon to talk to. Raises Unreachable where none is named and none is at its
    place, InvalidInput for what is no address."""
    found = given(url, api_key, env) or default(api_key, env)
    if found is None:
        # Late: who only asks whether there is a daemon needs nothing of HTTP's.
        from agentd.client.http.errors import Unreachable

        raise Unreachable(
            f"no daemon at {' or '.join(sockets(env))}",
            remediation=f"start one with agentd serve, or give --url or {URL}",
        )
    return found


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _listens(path: str) -> bool:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # by a daemon that is busy: its queue is full
            return True
        except OSError:  # nobody there any more, or not for us
            return False
    return True


def _socket(url: str) -> str:
    path = os.path.abspath(os.path.expanduser(url.removeprefix("unix:").removeprefix("//")))
    if url in ("unix:", "unix://") or "\0" in path:
        raise InvalidInput(f"{url!r} names no socket", remediation="write it as unix:/path")
    if len(os.fsencode(path)) > _MAX_PATH:
        raise InvalidInput(
            f"socket path {path} is longer than {_MAX_PATH} bytes", remediation="use a shorter one"
        )
    return path
