"""A host that pulls, with a neighbour, in namespaces of its own: run as a program, it prints JSON.

The host is this process. Its neighbour answers at 203.0.113.9, which is public, and at 10.9.0.9,
which is not; the host's own service is at all of its addresses.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.captured import Names
from tests.integration.configured import tls
from tests.leading import proxy, registry, service
from tests.oci import Images, Layout, file, layer

from agentd.linux import abi, net
from agentd.linux.kernel import KERNEL

PUBLIC, PRIVATE, OWN = "203.0.113.9", "10.9.0.9", "203.0.113.1"
NAMES = {
    "registry_example": [PUBLIC],
    "auth_example": [PUBLIC],
    "mine_example": [PRIVATE],
    "both_example": [PRIVATE, PUBLIC],
    "loop_example": ["127.0.0.1"],
    "linked_example": ["169.254.77.77"],
    "zero_example": ["0.0.0.0"],  # noqa: S104
    "own_example": [OWN],
    "mapped_example": ["::ffff:10.9.0.9"],
    "translated_example": ["64:ff9b::7f00:1"],
}
_MIRRORS = """
[[registry]]
location = "registry.example:80/mirrored"
[[registry.mirror]]
location = "10.9.0.9:5000"
insecure = true
[[registry]]
location = "other.example"
[[registry.mirror]]
location = "10.9.0.9:5001"
insecure = true
"""
_PROXY = (("HTTP_PROXY", f"http://me:word@{PRIVATE}:3128"), ("HTTPS_PROXY", f"{PRIVATE}:3128"))


class Pull(NamedTuple):
    """``realm`` and ``blobs`` are where the registry leads."""

    source: str = "registry.example:80/a:1"
    realm: str = ""
    blobs: str = ""
    words: tuple[str, ...] = ("--insecure",)
    env: tuple[tuple[str, str], ...] = ()


def _net(rules: str) -> tuple[str, ...]:
    return ("--insecure", "--net", rules)


PULLS = {
    "public": Pull(realm="http://auth.example/token", blobs=f"http://{PUBLIC}"),
    "tls": Pull("registry.example/a:1", words=()),
    # Of the names and numbers that lead elsewhere.
    **{
        f"realm {name}": Pull(realm=f"http://{name}/token")
        for name in (
            *("mine.example", "loop.example", "linked.example", "zero.example", "own.example"),
            *("mapped.example", "translated.example", PRIVATE, "[::ffff:10.9.0.9]"),
        )
    },
    "realm both": Pull(realm="http://both.example/token"),
    "realm port": Pull(realm="http://auth.example:8080/token"),
    "realm of a mirror": Pull(realm=f"http://{PRIVATE}:5001/token"),
    "blobs": Pull(blobs=f"http://{PRIVATE}"),
    # What is named, whatever it is.
    "named number": Pull(f"{PRIVATE}:5000/a:1"),
    "named name": Pull("mine.example:5000/a:1"),
    "named loopback": Pull("loop.example:80/a:1"),
    "named link": Pull("linked.example:80/a:1"),
    "named own": Pull("own.example:80/a:1"),
    "mirror": Pull("registry.example:80/mirrored/a:1"),
    # By rules.
    "rule port": Pull(realm="http://auth.example:8080/token", words=_net("auth.example:8080")),
    "rule name": Pull(realm="http://mine.example/token", words=_net("mine.example")),
    "rule network": Pull(blobs=f"http://{PRIVATE}", words=_net("10.9.0.0/16:*")),
    "rule own": Pull(realm="http://own.example/token", words=_net("host.agentd.internal:80")),
    "rule own denied": Pull(
        realm="http://own.example/token", words=_net(f"host.agentd.internal:80,!{OWN}")
    ),
    "rule own taken back": Pull(
        realm="http://own.example/token",
        words=_net("host.agentd.internal:80,!host.agentd.internal"),
    ),
    "rule denied": Pull(words=_net("!203.0.113.0/24")),
    "rule host": Pull(realm="http://127.0.0.1/token", words=_net("host")),
    # Through a proxy.
    "proxy": Pull(realm="http://auth.example/token", env=_PROXY),
    "proxy realm": Pull(realm=f"http://{PRIVATE}/token", env=_PROXY),
    "proxy realm own": Pull(realm=f"http://{OWN}/token", env=_PROXY),
    "proxy not for it": Pull(env=(*_PROXY, ("NO_PROXY", ".example"))),
}


def main() -> None:
    KERNEL.unshare(abi.CLONE_NEWNET | abi.CLONE_NEWNS)
    KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    net.loopback_up()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-pulls-")))
        made = Layout(folder / "layout")
        made.add([layer(file("a", b"a"))])
        _configure(folder)
        servers: dict[str, Any] = {}
        names = NameServer(**NAMES)
        stack.callback(names.close)
        _far_away(lambda: servers.update(_servers(stack, made.path, folder)))
        _ip("address", "add", f"{OWN}/24", "dev", "near")
        _ip("address", "add", "10.9.0.1/24", "dev", "near")
        _ip("link", "set", "near", "up")
        servers["own"] = stack.enter_context(registry(made.path, "0.0.0.0", 80))  # noqa: S104
        images = Images(folder)
        print(json.dumps({name: _pulled(images, pull, servers) for name, pull in PULLS.items()}))


def _configure(folder: Path) -> None:
    KERNEL.mount("tmpfs", "/etc/containers", "tmpfs", 0, None)
    Path("/etc/containers/registries.conf").write_text(_MIRRORS)
    trusted = Path("/etc/containers/certs.d/registry.example")
    trusted.mkdir(parents=True)
    tls(folder, "registry.example")
    (trusted / "ca.crt").write_bytes((folder / "ca.pem").read_bytes())
    resolver = folder / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    KERNEL.mount(str(resolver), "/etc/resolv.conf", None, abi.MS_BIND)


def _servers(stack: ExitStack, layout: Path, folder: Path) -> dict[str, Any]:
    made = {
        "public": registry(layout, PUBLIC, 80),
        "tls": registry(layout, PUBLIC, 443, tls=folder),
        "8080": service(layout, PUBLIC, 8080),
        "private": service(layout, PRIVATE, 80),
        "5000": registry(layout, PRIVATE, 5000),
        "5001": service(layout, PRIVATE, 5001),
        "proxy": proxy(PRIVATE, 3128, registry_example=PUBLIC, auth_example=PUBLIC),
    }
    return {name: stack.enter_context(server) for name, server in made.items()}


def _pulled(images: Images, pull: Pull, servers: dict[str, Any]) -> dict[str, Any]:
    for server in servers.values():
        server.asked.clear()
    servers["public"].realm, servers["public"].blobs = pull.realm, pull.blobs
    os.environ.update(dict(pull.env))
    try:
        words = ("pull", f"docker://{pull.source}", "--name", "a", *pull.words)
        done = images.run(*words, code=None)
        images.run("rm", "a", code=None)
        images.run("prune", code=None)
    finally:
        for name, _ in pull.env:
            del os.environ[name]
    asked = {name: server.asked[:] for name, server in servers.items() if server.asked}
    return {"code": done.returncode, "said": done.stderr, "asked": asked}


def _far_away(work: Callable[[], None]) -> None:
    """Do it in a network of its own, the neighbour's, with what it starts."""
    failed: list[BaseException] = []

    def there() -> None:
        try:
            KERNEL.unshare(abi.CLONE_NEWNET)
            net.loopback_up()
            peer = ("peer", "name", "near", "netns", str(os.getpid()))
            _ip("link", "add", "far", "type", "veth", *peer)
            for address in (f"{PUBLIC}/24", f"{PRIVATE}/24"):
                _ip("address", "add", address, "dev", "far")
            _ip("link", "set", "far", "up")
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdout=sys.stderr)


class NameServer(Names):
    PORT = 53


if __name__ == "__main__":
    main()
