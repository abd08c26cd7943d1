"""The suite of every wall, over ours: files."""

from agentd.testing.walls.test_files import *
