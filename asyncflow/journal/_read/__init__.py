"""Reads runs from a journal: whole ones, lists of them, and overviews.

It may import `_write`, `_codec`, `_database` and the core. The faces of the journal call it, in
threads.
"""
