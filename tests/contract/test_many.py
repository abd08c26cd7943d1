"""The suite of every wall, over ours: many at once."""

from agentd.testing.walls.test_many import *
