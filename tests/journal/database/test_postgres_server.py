"""The PostgreSQL server of the tests does not outlive them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from postgres_server import PostgresServer

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from postgres_server import running_server
with running_server() as server:
    print(server.folder, server.port, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_server_stops_when_the_test_process_is_killed(postgres_server: PostgresServer) -> None:
    tests_folder = str(Path(__file__).parents[2])

    # The process that stops the server inherits the standard output, so run() waits for it too.
    process = subprocess.run(
        [sys.executable, "-c", KILLED, tests_folder],
        stdout=subprocess.PIPE,
        timeout=40,
        text=True,
    )

    assert process.returncode == -signal.SIGKILL
    folder, port = process.stdout.split()
    assert not Path(folder).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))
