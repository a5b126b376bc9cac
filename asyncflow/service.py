"""Pipelines inside a long-lived service."""
