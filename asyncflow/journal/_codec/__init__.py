"""Turns events and values into what a database stores, and back."""
