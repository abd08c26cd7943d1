"""The suite of every wall, over ours: what some can and others refuse."""

from agentd.testing.walls.test_abilities import *
