"""Packages of a sandbox: what is asked for is resolved and unpacked in a sandbox, once."""
