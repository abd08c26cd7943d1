"""Walls of gVisor: a kernel in user space answers what commands ask, and runsc builds them."""
