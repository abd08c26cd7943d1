"""A short name for a sequence of bytes."""


def fingerprint(content: bytes) -> str:
    """Returns the first 16 hexadecimal digits of its SHA-256."""
    from hashlib import sha256  # late: it maps OpenSSL, which the zygote does without

    return sha256(content).hexdigest()[:16]
