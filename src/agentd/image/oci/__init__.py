"""OCI images: pulled, kept by digest, unpacked once for every wall."""
