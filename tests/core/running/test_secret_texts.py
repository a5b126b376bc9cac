"""Secret texts, wherever they stand in a text."""

from __future__ import annotations

from asyncflow._core.running.secret_texts import SecretTexts


def test_the_longest_secret_is_replaced_first_whichever_run_knows_it() -> None:
    outer = SecretTexts()
    outer.add("inner")
    secrets = SecretTexts(outer)
    secrets.add(["an inner one", "an inner one or two"])
    outer.add("hunter2")

    shown = secrets.replaced("an inner one or two, an inner one, inner, hunter2hunter2, hunter")

    assert shown == "<secret>, <secret>, <secret>, <secret><secret>, hunter"
    assert secrets.longest() == len("an inner one or two")
    assert SecretTexts().longest() == 0
