"""`retry_after` reads when a service wants to be asked again, of whatever client the error is."""

from __future__ import annotations

import email.message
import math
import urllib.error
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncflow import Pool, Retry, StepTimeoutError, WorkflowStep, retry_after, run_pipeline
from asyncflow.testing import run_in_virtual_time

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
LATER = "Wed, 21 Oct 2026 07:28:30 GMT"


class ResponseOfRequests:
    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status_code, self.headers = status, headers

    def __bool__(self) -> bool:
        return self.status_code < 400


def error_with(**attributes: Any) -> Exception:
    error = Exception("failed")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def of_httpx(status: int, headers: dict[str, str]) -> Exception:
    request = httpx.Request("GET", "https://example.com")
    response = httpx.Response(status, headers=headers, request=request)
    return httpx.HTTPStatusError("refused", request=request, response=response)


def of_requests(status: int, headers: dict[str, str]) -> Exception:
    return error_with(response=ResponseOfRequests(status, headers))


def of_openai(status: int, headers: dict[str, str]) -> Exception:
    response = httpx.Response(status, headers=headers)
    return error_with(response=response, status_code=status, code="rate_limit_exceeded")


def of_aiohttp(status: int, headers: dict[str, str]) -> Exception:
    return error_with(status=status, headers=headers or None)


def of_urllib(status: int, headers: dict[str, str]) -> Exception:
    message = email.message.Message()
    for name, value in headers.items():
        message[name] = value
    error = urllib.error.HTTPError("https://example.com", status, "refused", message, None)
    error.close()  # it is the answer too: from Python 3.14 on one that stays open is warned of
    return error


CLIENTS = pytest.mark.parametrize(
    "refused", [of_httpx, of_requests, of_openai, of_aiohttp, of_urllib]
)


@CLIENTS
def test_the_errors_of_clients_name_seconds_milliseconds_and_dates(refused: Any) -> None:
    assert retry_after(refused(429, {"Retry-After": "7"})) == 7_000
    assert retry_after(refused(503, {"retry-after": "0.5"})) == 500
    assert retry_after(refused(429, {"retry-after-ms": "20", "Retry-After": "1"})) == 20
    assert retry_after(refused(429, {"Retry-After": LATER, "Date": DATE})) == 30_000


@CLIENTS
@pytest.mark.parametrize(
    ("status", "expected"), [(429, True), (503, True), (500, False), (404, False)]
)
def test_without_a_header_the_status_decides(refused: Any, status: int, expected: bool) -> None:
    assert retry_after(refused(status, {})) is expected


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e999", "soon", "", LATER])
def test_what_names_no_time_is_no_time(value: str) -> None:
    assert retry_after(of_httpx(429, {"Retry-After": value})) is True
    assert retry_after({"Retry-After": value}) is False


def test_headers_are_read_in_any_spelling() -> None:
    assert retry_after({"RETRY-AFTER": "3"}) == 3_000
    assert retry_after({b"retry-after": b"3"}) == 3_000
    assert retry_after(httpx.Headers({"Retry-After": "3"})) == 3_000
    assert retry_after({}) is False


def test_a_date_counts_from_that_of_the_answer_and_one_without_a_zone_is_utc() -> None:
    naive = "Wed, 21 Oct 2026 07:28:30 -0000"

    assert retry_after({"Retry-After": naive, "Date": DATE}) == 30_000
    assert retry_after({"Retry-After": DATE, "Date": LATER}) == 0.0


class TransportError(Exception):
    __module__ = "httpx._exceptions"


class APITimeoutError(type("APIConnectionError", (Exception,), {"__module__": "openai"})):  # type: ignore[misc]
    response = property(lambda self: 1 / 0)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        StepTimeoutError("a", 1, 5, "attempt"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        TransportError(),
        APITimeoutError(),
    ],
)
def test_a_connection_that_failed_is_tried_again(error: Exception) -> None:
    assert retry_after(error) is True


@pytest.mark.parametrize(
    "error", [ValueError(), FileNotFoundError(), error_with(response=None, headers=None)]
)
def test_other_errors_are_not(error: Exception) -> None:
    assert retry_after(error) is False


@pytest.mark.parametrize("headers", [SimpleNamespace(), 7, "text"])
def test_headers_of_another_kind_are_ignored(headers: object) -> None:
    assert retry_after(error_with(status=429, headers=headers)) is True


async def test_it_is_all_that_a_call_needs() -> None:
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise of_httpx(429, {"Retry-After": "0.02"})
        return "answer"

    step = WorkflowStep("call", call, pool=Pool(2), max_retries=3, retry=Retry(on=retry_after))
    report = await run_pipeline([step])

    assert report["call"].output == "answer"
    assert report["call"].duration_ms >= 19


class Hostile:
    """Headers whose ``items`` raise, can't be called, or are no pairs of texts."""

    def __init__(self, items: Any) -> None:
        self._items = items

    @property
    def items(self) -> Any:
        if isinstance(self._items, Exception):
            raise self._items
        return self._items


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


def raising() -> Any:
    raise RuntimeError("no")


numbers = st.one_of(st.integers(), st.floats()).map(str)
days = st.sampled_from(["Mon, 1 Jan", "1 Jan", "32 Foo", "Wed, 21 Oct"])
years = st.integers().map(str)
zones = st.sampled_from(["GMT", "+0000", "-9999", "+99999999999999", "", "EST"])
near_dates = st.tuples(days, years, st.just("07:28:00"), zones).map(" ".join)
values = st.one_of(
    numbers, st.text(), near_dates, st.datetimes().map(format_datetime), st.binary(), st.integers()
)
names = st.sampled_from(["Retry-After", "retry-after-ms", b"Retry-After", "Date", "date", "x"])
some_headers = st.one_of(
    st.dictionaries(names, values),
    st.sampled_from(
        [
            Hostile(RuntimeError("no")),
            Hostile("no function"),
            Hostile(raising),
            Hostile(lambda: None),
            Hostile(lambda: [("Retry-After",)]),
            Hostile(lambda: [(Unprintable(), Unprintable())]),
            None,
            7,
        ]
    ),
)
FAR = {"Retry-After": "Mon, 1 Jan 99999999999999999999 00:00:00 GMT", "Date": DATE}


@given(some_headers, st.sampled_from([None, 200, 429]))
@example(FAR, 429)
@example({"Retry-After": "1e306"}, 429)
@example({"Retry-After": "Wed, 21 Oct 2026 07:28:00", "Date": "Wed, 21 Oct 2026 07 +9"}, 429)
def test_whatever_the_headers_are_it_answers_with_a_time_or_as_the_status_says(
    headers: Any, status: int | None
) -> None:
    answer = retry_after(error_with(headers=headers, status=status))

    if isinstance(answer, bool):
        assert answer is (status == 429)
    else:
        assert 0 <= answer < math.inf
    if isinstance(headers, dict):
        assert retry_after(headers) == (False if isinstance(answer, bool) else answer)


def test_a_header_that_is_no_time_leaves_the_step_its_error_and_its_attempts() -> None:
    async def call() -> None:
        raise error_with(status=429, headers=FAR)

    step = WorkflowStep("call", call, max_retries=3, retry=Retry(base_ms=1, on=retry_after))
    report = run_in_virtual_time(run_pipeline([step]))

    assert (str(report["call"].error), report["call"].attempts) == ("failed", 3)
