"""One exchange before the process is confined: what is imported or read at its first use is there
then."""

import asyncio
import contextlib
import socket
import ssl

from OpenSSL import SSL

from agentd.egress import authority
from agentd.egress.terminator.certificates import LeafIssuer
from agentd.egress.terminator.ends import BROKEN, ClientTls, UpstreamTls, upstream_context

_NAME = "rehearsal.example"
_SECONDS = 60.0


async def rehearse(client: SSL.Context) -> None:
    """Let both ends of TLS shake hands with each other. Raises OSError, SSL.Error."""
    made = authority.make([_NAME])
    issuer = LeafIssuer(made.key, made.certificate)
    for roots in (made.certificate, ""):  # and what is not believed
        near, far = socket.socketpair()
        async with asyncio.timeout(_SECONDS):
            with contextlib.suppress(ssl.SSLError, SSL.Error):
                await _talk(ClientTls(near), UpstreamTls(far), client, issuer, roots)


async def _talk(
    near: ClientTls, far: UpstreamTls, client: SSL.Context, issuer: LeafIssuer, roots: str
) -> None:
    try:
        await asyncio.gather(
            near.accept(client, lambda connection: issuer.use(connection, _NAME)),
            far.connect(upstream_context(roots), _NAME),
            return_exceptions=not roots,
        )
        if roots:
            for one, other in ((near, far), (far, near)):
                await one.write(b"words")
                await other.read()
            await near.finish()
            await far.finish()
    except BROKEN:
        if roots:
            raise
    finally:
        near.close()
        far.close()
