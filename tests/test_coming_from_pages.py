"""The pages for those who come from other tools name what is built, and call none of it lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs" / "coming-from"

SHARED = "limits.md#share-a-limit-over-processes"
QUEUE = "services.md#runs-that-wait-to-start"
KEYS = "services.md#one-at-a-time"
CALLS = "durable-runs.md#calls-that-are-never-paid-twice"
STREAMS = "streaming.md"
SIGNALS = "waiting.md"
ATTRIBUTES = "looking-back.md#find-runs"
KEEP = "services.md#old-runs"

NAMED = {
    "airflow": [SHARED, QUEUE, KEYS, SIGNALS, KEEP],
    "celery": [SHARED, QUEUE, KEYS, KEEP],
    "dbos": [SHARED, QUEUE, KEYS, CALLS, STREAMS, SIGNALS, KEEP],
    "langgraph": [SHARED, CALLS, STREAMS, SIGNALS, ATTRIBUTES],
    "prefect": [SHARED, QUEUE, KEYS, CALLS, SIGNALS, ATTRIBUTES],
    "pydantic-ai": [SHARED, CALLS, STREAMS, SIGNALS],
    "temporal": [SHARED, QUEUE, KEYS, CALLS, SIGNALS, ATTRIBUTES, KEEP],
}
"""The features whose like each tool has, by the place that its page must link to."""


@pytest.mark.parametrize(
    ("page", "feature"), [(page, each) for page, features in NAMED.items() for each in features]
)
def test_a_page_links_to_each_feature_whose_like_its_tool_has(page: str, feature: str) -> None:
    assert f"](../guides/{feature})" in (PAGES / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", NAMED)
def test_a_page_calls_no_limit_over_processes_lost_without_a_link_to_shared_pools(
    page: str,
) -> None:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    losses = text.partition("## What you keep, what you lose")[2].partition("\n## ")[0]

    for loss in re.split(r"\n(?=\n|- )", losses):
        if re.search(r"\b(limit|pool)s?\b.*\b(processes|machines|servers)\b", loss, re.DOTALL):
            assert SHARED in loss


def test_the_index_says_of_no_feature_that_asyncflow_does_not_have_it() -> None:
    table = (PAGES / "index.md").read_text(encoding="utf-8").partition("\n## ")[0]

    lacks = [row.split("|")[3] for row in table.splitlines() if row.startswith("| ")]

    assert len(lacks) > len(NAMED)
    assert not [each for each in lacks if re.search("limit|queue|stream|key", each)]
