"""Why a service starts no run, or has no response to send."""

from __future__ import annotations


class ServiceUnavailableError(Exception):
    """The service starts no run at present. A web service answers with status 503.

    Attributes:
        retry_after_s: In how many whole seconds it may: the ``Retry-After`` of the response.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"the service starts no run at present; try again in {self.retry_after_s} s"


class ServiceFullError(ServiceUnavailableError):
    """The service has as many runs as it may have at a time.

    Attributes:
        retry_after_s: In how many seconds one of them probably ends, judged by the latest runs; at
            least 1 and at most 60.
        max_runs: How many there may be.
    """

    def __init__(self, retry_after_s: int, max_runs: int) -> None:
        super().__init__(retry_after_s)
        self.args = retry_after_s, max_runs
        self.max_runs = max_runs

    def __str__(self) -> str:
        return (
            f"the service has {self.max_runs} runs, its limit; try again in {self.retry_after_s} s"
        )


class ServiceStoppingError(ServiceUnavailableError):
    """The service is shutting down, so another process must start the run."""

    def __str__(self) -> str:
        return f"the service is shutting down; try again in {self.retry_after_s} s"


class ClientDisconnectedError(Exception):
    """The client went away before its run had ended.

    Attributes:
        run_id: The run.
        on_disconnect: What became of it: ``"cancel"`` if it was cancelled, and has ended;
            ``"detach"`` if it continues.
    """

    def __init__(self, run_id: str, on_disconnect: str) -> None:
        super().__init__(run_id, on_disconnect)
        self.run_id = run_id
        self.on_disconnect = on_disconnect

    def __str__(self) -> str:
        became = "was cancelled" if self.on_disconnect == "cancel" else "continues"
        return f"the client of run {self.run_id!r} went away; the run {became}"
