"""Which requests of a browser are a page's own, and which another site's page makes it send."""

from typing import Any

from agentd.model.errors import Forbidden

_READ = frozenset((b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"))


def check_same_site(scope: Any) -> None:
    """Raises Forbidden for what a page of another origin asks, but to be opened in its place.

    A sibling below the same domain is another origin, too: SameSite cookies do not keep it away.
    Browsers say who asks in Sec-Fetch-Site (Fetch Metadata); where that is missing, Origin does.
    """
    found = {name: value for name, value in scope["headers"] if name in _READ}
    site = found.get(b"sec-fetch-site")
    if site is None:
        origin = found.get(b"origin")
        own = origin is None or origin.partition(b"://")[2].lower() == found[b"host"].lower()
    else:
        own = site in (b"same-origin", b"none") or (
            scope.get("method") in ("GET", "HEAD")
            and found.get(b"sec-fetch-mode") == b"navigate"
            and found.get(b"sec-fetch-dest") == b"document"
        )
    if not own:
        raise Forbidden(
            "a page of another site asks this",
            cause=f"its origin is {found.get(b'origin', b'not said')[:200].decode('latin-1')}",
            remediation="open it by itself, in a window of its own",
        )
