"""An OCI image, as callers are told of it."""

import msgspec


class ImageView(msgspec.Struct, frozen=True):
    """An OCI image; ``bytes`` are those of its blobs."""

    name: str
    digest: str
    layers: int
    bytes: int
