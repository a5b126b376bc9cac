"""Writes runs to a journal: the worker thread and its SQL statements."""
