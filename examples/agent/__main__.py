"""Serves the example: ``python -m examples.agent [PORT]``."""

from __future__ import annotations

import sys

import uvicorn

from .app import app

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=5)
