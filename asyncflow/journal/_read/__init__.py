"""Reads runs from a journal: whole ones, lists of them, and overviews."""
