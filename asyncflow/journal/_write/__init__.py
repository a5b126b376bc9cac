"""Writes runs to a journal: the worker thread, its leases and commits, and their SQL statements.

It may import `_codec`, `_database` and the core. The faces of the journal call it, and a run
through its `SQLSession`.
"""
