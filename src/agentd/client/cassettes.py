"""The caller's own side of cassettes: their files, which ``net`` names, and no daemon has."""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from agentd.client import arguments
from agentd.linux.replacing import replacing
from agentd.model.cassette import MAX_CASSETTE, Cassette, parse
from agentd.model.egress import RECORD, REPLAY, Net
from agentd.model.errors import InvalidInput, OperationFailed

if TYPE_CHECKING:
    from agentd.model.network import Network


class CassetteFiles(NamedTuple):
    """``record`` is where to write what was asked, ``replay`` what to answer from; either may be
    nothing."""

    record: str = ""
    replay: bytes = b""

    def play(self, network: "Network", sandbox: str) -> None:
        """Put in what it is to answer from, before anything runs in it."""
        if self.replay:
            network.play(sandbox, self.replay)

    def save(self, network: "Network", sandbox: str) -> Cassette | None:
        """Write what it asked, whole or not at all; return that, or None where nothing is to be
        written. Raises OperationFailed, and what the service raises."""
        if not self.record:
            return None
        data = network.cassette(sandbox)
        _write(self.record, data)
        return parse(data)


def taken(net: Net) -> tuple[Net, CassetteFiles]:
    """Return ``net`` as a service takes it, and the files that it names: ``record:FILE`` becomes
    ``record``, and ``replay:FILE`` ``replay`` and its cassette's hosts. Raises InvalidInput."""
    if net is None:
        return net, CassetteFiles()
    if isinstance(net, bytes | Mapping) or not isinstance(net, Iterable):
        raise arguments.wrong("net", net, "text, or a list of rules", 'write it as ["pypi"]')
    texts = [text.strip() for text in net.split(",")] if isinstance(net, str) else list(net)
    files, rules = CassetteFiles(), []
    for text in texts:
        word, colon, path = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not colon or word not in (RECORD, REPLAY):
            rules.append(text)
            continue
        if any(files):
            raise InvalidInput(
                f"network rule {text!r} is one file too many",
                remediation="name one cassette, to record or to replay",
            )
        if word == RECORD:
            files = files._replace(record=_writable(os.path.expanduser(path)))
            rules.append(RECORD)
        else:
            data = read(os.path.expanduser(path))
            files = files._replace(replay=data)
            rules += [REPLAY, *_parsed(path, data).rules]
    return (rules if any(files) else net), files


def read(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a cassette. Raises InvalidInput for what is none."""
    path = arguments.host_path(path, "cassette")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CASSETTE + 1)
    except OSError as error:
        raise InvalidInput(
            f"cannot read the cassette {path or 'of no name'}",
            cause=error.strerror or "",
            remediation="name one that a sandbox with the rule record:FILE has written",
        ) from None
    _parsed(path, data)
    return data


def _parsed(path: str, data: bytes) -> Cassette:
    try:
        return parse(data)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}", remediation=error.remediation) from None


def _writable(path: str) -> str:
    """Return where it is, behind links. Raises InvalidInput where it could not be written, to be
    told at the end is too late, and for what is no file, as /dev/null, which one would replace."""
    place = os.path.realpath(path)
    folder = os.path.dirname(place)
    why = ""
    if path == "-":
        why = "it is a file of its own, never standard output"
    elif not os.path.basename(path) or (os.path.lexists(place) and not os.path.isfile(place)):
        why = "it is no file"
    elif not os.path.isdir(folder):
        why = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        why = f"you may not write in {folder}"
    if why:
        raise InvalidInput(
            f"cannot write the cassette {path or 'of no name'}: {why}",
            remediation="name a file in a folder that is there, as record:tape.jsonl",
        )
    return place


def _write(path: str, data: bytes) -> None:
    from agentd.linux import process

    try:
        with replacing(path, 0o666 & ~process.umask()) as file:
            file.write(data)
    except OSError as error:
        raise OperationFailed(
            f"cannot write the cassette {path}",
            cause=error.strerror or "",
            errno=error.errno or 0,
            remediation="make room, or name another file",
        ) from None
