"""Limits that outlive a run: pools, their lines, rates, keys and shares."""
