"""Limits that outlive a run: pools, with their lines, rates, keys and shares.

It may import the ground floor. Attempts ask it for slots through the policy `permits`, journals for
a process's share, and programs for its numbers.
"""
