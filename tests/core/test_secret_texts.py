"""Secret texts, wherever they stand in a text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncflow._core.secret_texts import SecretTexts


def known(*values: object) -> SecretTexts:
    secrets = SecretTexts()
    for value in values:
        secrets.add(value)
    return secrets


@pytest.mark.parametrize(
    ("secrets", "text", "shown"),
    [
        (["abcd-ef", "ef-ghij"], "+abcd-ef-ghij+", "+<secret>+"),  # neither leaves a part
        (["inner", "an inner one"], "an inner one, inner", "<secret>, <secret>"),
        (["aaaa"], "aaaaaa", "<secret>"),
        (["hunter2"], "hunter2hunter2", "<secret><secret>"),
        (["hunter2"], "hunter", "hunter"),
    ],
)
def test_secrets_that_overlap_leave_no_part(secrets: list[str], text: str, shown: str) -> None:
    assert known(*secrets).replaced(text) == shown


@given(
    st.lists(st.text("ab-", min_size=4, max_size=6), max_size=3),
    st.text("ab-", max_size=30),
    st.booleans(),
)
def test_many_secrets_are_found_as_a_few_are(few: list[str], text: str, outer: bool) -> None:
    others = {f"{number:04}": f"{number:04}x" for number in range(100)}

    many = SecretTexts(known(others) if outer else None)
    many.add(few if outer else [few, others])

    assert many.replaced(text) == known(few).replaced(text)
    assert not any(secret in many.replaced(text) for secret in few)


@pytest.mark.realtime
def test_a_line_costs_the_same_however_many_secrets_there_are() -> None:
    line = "line 12 with some text that is not secret"

    def cost_us(secrets: SecretTexts) -> float:
        started = time.process_time()
        for _ in range(1_000):
            secrets.replaced(line)
        return (time.process_time() - started) * 1000

    some, many = (
        known({number: f"secret-value/{number}+x" for number in range(size)})
        for size in (100, 1_000)
    )

    assert cost_us(many) < 2 * cost_us(some) + 10
