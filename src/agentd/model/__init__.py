"""Frozen values shared by every room. No I/O."""
