"""Every bound of the HTTP side, in one place."""

import msgspec

KIB, MIB = 1 << 10, 1 << 20


class WebLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Holds all bounds: sizes in bytes, times in seconds.

    Threads exist only while they are used. ``waits`` bounds the requests that stay until something
    inside a sandbox is done; more are refused with 429, never queued. What looks at sandboxes, or
    ends them, has room of its own. Of each kind a caller that is alone gets half.
    """

    connections: int = 2048  # of each listener; a principal that is alone gets half
    head: int = 64 * KIB  # request line and headers
    headers: int = 128  # how many
    body: int = 64 * MIB  # of a request that is not a streamed upload
    held: int = 512 * MIB  # of all requests that are kept, and of all answers; of one caller half
    message: int = MIB  # of a WebSocket client
    pipelined: int = 16  # requests that a client sends before it has its answers
    discarded: int = MIB  # of a refused body, before the connection is cut

    head_seconds: float = 10.0  # from the first byte of a request to the end of its headers
    idle: float = 60.0  # of a connection between requests
    stranger: float = 10.0  # of a connection whose caller has not proved who it is, in all
    body_seconds: float = 60.0  # without a byte of a body; and for the whole of one that is JSON
    slowest: int = KIB  # bytes a second of an upload, on the average after body_seconds
    stall: float = 300.0  # that an answer waits for a client who takes nothing
    farewell: float = 3.0  # the same of a stream or a WebSocket, as the daemon is about to end
    discard_seconds: float = 5.0
    tls_seconds: float = 10.0  # of a TLS handshake
    first_message: float = 10.0  # that WS .../exec waits for its ExecBody
    reauthorise: float = 5.0  # between two looks at whether a stream's caller still may have it
    heartbeat: float = 15.0  # between comments in an idle stream of server-sent events

    short: int = 64  # threads for what only looks something up
    control: int = 256  # threads for what looks at a sandbox, or ends, renews or signals
    waits: int = 1024
    transfers: int = 256  # downloads that take their next piece at the same time; others queue
    uploads: int = 256
    tunnels: int = 512  # connections to ports
    watches: int = 512
