"""Pipelines that ship with the package and run without any extra."""
