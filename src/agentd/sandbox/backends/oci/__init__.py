"""Walls that an OCI runtime builds, of a bundle that agentd makes."""
