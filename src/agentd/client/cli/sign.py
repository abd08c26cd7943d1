"""``agentd sign``: a request that proves by itself who asks."""

import argparse
import os
import stat
import sys

from agentd.client.cli import remote, streams
from agentd.client.cli.parser import Parser, named
from agentd.model.errors import InvalidInput
from agentd.model.system import os_errors_as

_EXAMPLES = """\
examples:
  agentd sign --new-key alice.pem                  a key pair; alice.pub.pem is for the daemon
  agentd sign request.json --key alice.pem         prints the request with its signature
  agentd sign request.json --key alice.pem --out signed.json --ttl 30s
  echo '{"capability": "fs.read.v1"}' | agentd sign - --key alice.pem --audience build-1

A signed request holds once, for at most some minutes. docs/signed-requests.md tells more.
"""


def main(words: list[str]) -> int:
    options = _parser().parse_args(words)
    if options.new_key is not None:
        return _new_key(options)
    if options.request is None or options.key is None:
        raise InvalidInput(
            "nothing to sign, or nothing to sign with",
            remediation="agentd sign request.json --key FILE, or --new-key FILE",
        )
    return _sign(options)


def _new_key(options: argparse.Namespace) -> int:
    if options.request is not None or options.key is not None:
        raise InvalidInput(
            "--new-key makes a key and signs nothing", remediation="sign with --key afterwards"
        )
    if options.new_key == "-":
        raise InvalidInput(
            "a key pair is two files, and - is none",
            remediation="name that of the private one, as alice.pem",
        )
    from agentd.auth.keyfiles import new_pair

    id_, public = new_pair(options.new_key)
    remote.tell(options, {"id": id_, "key": options.new_key, "public": public}, id_)
    print(f"{public} is for the daemon's trusted signers", file=sys.stderr)
    return 0


def _sign(options: argparse.Namespace) -> int:
    from agentd.auth.keyfiles import load_private
    from agentd.auth.signing import sign
    from agentd.client.cli import params
    from agentd.model.canonical import MAX_BYTES, canonical
    from agentd.model.units import parse_duration

    raw = params.read(options.request, "give another file", MAX_BYTES + 1)
    request = params.strict(raw, options.request)
    if not isinstance(request, dict):
        raise InvalidInput(
            f"{options.request} holds no JSON object", remediation='write it as {"name": ...}'
        )
    ttl = None if options.ttl is None else parse_duration(options.ttl, "ttl")
    key = load_private(options.key)
    signed = canonical(sign(request, key, audience=options.audience, ttl=ttl)) + b"\n"
    if options.out == "-":
        streams.check_output()
    if options.out in (None, "-"):
        sys.stdout.buffer.write(signed)
        sys.stdout.flush()
    else:
        _write(options.out, signed)
        remote.tell(options, {"out": options.out})
    return 0


def _write(path: str, data: bytes) -> None:
    # Whoever reads it can send it in: until it is used, or stale, it is a credential.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with (
        os_errors_as(InvalidInput, f"cannot write {path}", "give another file"),
        os.fdopen(os.open(path, flags, 0o600), "wb") as file,
    ):
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.fchmod(file.fileno(), 0o600)  # it may have been there, for others to read
        file.write(data)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd sign",
        usage="agentd sign REQUEST --key FILE [options]\n       agentd sign --new-key FILE",
        description="Sign a request (a JSON object), or make a key to sign with.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "request", type=named, metavar="REQUEST", nargs="?", help="a file, or - for stdin"
    )
    parser.add_argument("--key", type=named, metavar="FILE", help="the private key, Ed25519 in PEM")
    parser.add_argument(
        "--out", type=named, metavar="FILE", help="where to write it (default: stdout)"
    )
    parser.add_argument("--audience", type=named, metavar="NAME", help="the daemon that it is for")
    parser.add_argument("--ttl", metavar="TIME", help="how long it holds, as 30s, at most")
    parser.add_argument(
        "--new-key", type=named, metavar="FILE", help="make a key pair; prints its id"
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON; what is signed is that anyhow"
    )
    return parser
