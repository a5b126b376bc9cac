"""Runs pipelines on asyncio: the driver around the pure core."""
