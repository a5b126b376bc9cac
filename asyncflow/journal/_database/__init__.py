"""The databases: connections, tables, and what SQL statements share.

It may import the core. All other rooms of the journal call it.
"""
