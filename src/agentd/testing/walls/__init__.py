"""The wall suite: what every wall keeps, whoever has built it.

    pytest --pyargs agentd.testing.walls --backend NAME
"""
