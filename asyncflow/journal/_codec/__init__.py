"""Turns events and values into what a database stores, and back.

It may import `_database` and the core. The rooms and faces of the journal call it; a signal is
asked for its schema here.
"""
