"""The suite of every wall, over ours: commands."""

from agentd.testing.walls.test_run import *
