"""Fetching by HTTP from where an attacker chooses the URL: one address, checked, then pinned."""
