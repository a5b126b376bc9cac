"""The tests' own server does not outlive them."""

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


def test_the_server_ends_when_the_tests_are_killed(postgres_server: PostgresServer) -> None:
    folder_of_the_tests = str(Path(__file__).parents[1])

    # What waits for their end has their standard output too: so this returns when it has ended.
    process = subprocess.run(
        [sys.executable, "-c", KILLED, folder_of_the_tests],
        stdout=subprocess.PIPE,
        timeout=40,
        text=True,
    )

    assert process.returncode == -signal.SIGKILL
    folder, port = process.stdout.split()
    assert not Path(folder).exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))
