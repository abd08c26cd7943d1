"""What looks at a request and its answer on their way, and may put other bytes in their place."""

from typing import Protocol

from agentd.egress.terminator.credentials import BodyFilter, Headers


class HostLook(Protocol):
    """Of one connection's requests and answers, in turn. All raise CredentialRefusal. What filters
    give back of a body is as long as what they were fed."""

    def head(
        self, method: bytes, target: bytes, headers: Headers
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]: ...

    def body(self) -> BodyFilter: ...

    def tunnel(self) -> BodyFilter:
        """Look at what the program says once both ends have switched to a WebSocket."""

    def answer_head(self, status: int, headers: Headers) -> list[tuple[bytes, bytes]]: ...

    def answer_body(self) -> BodyFilter: ...


class Unchanged:
    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


class Untouched:
    """Of a host where no secret goes, in a sandbox without any."""

    def head(
        self, _method: bytes, target: bytes, headers: Headers
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        return target, list(headers)

    def body(self) -> BodyFilter:
        return Unchanged()

    def tunnel(self) -> BodyFilter:
        return Unchanged()

    def answer_head(self, _status: int, headers: Headers) -> list[tuple[bytes, bytes]]:
        return list(headers)

    def answer_body(self) -> BodyFilter:
        return Unchanged()
