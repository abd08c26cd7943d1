"""Suites for those who write a part of agentd: ``walls`` for a backend, ``doors`` for a door.

They need pytest, which the extra ``testing`` brings; ``pytest --pyargs agentd.testing`` runs them.
"""
