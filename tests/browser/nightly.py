"""The pipeline of the pictures in README.md and the docs: a step fails on a value with a blank."""

import asyncio

from asyncflow import Pipeline, after, current_step

nightly = Pipeline("nightly", schedule="ready")


async def requested(seconds: float, rows: int) -> list[dict[str, object]]:
    await asyncio.sleep(seconds)
    seasons = ("spring", "summer", "autumn", "winter")
    return [{"order": 1001 + row, "season": seasons[row % 4], "eur": 49.5} for row in range(rows)]


@nightly.step
async def orders() -> list[dict[str, object]]:
    found = await requested(0.9, 7)
    found[2]["season"] = "spring "
    return found


@nightly.step(max_retries=3, retry=200)
async def customers() -> list[dict[str, object]]:
    found = await requested(0.4, 3)
    if current_step().attempt < 3:
        raise ConnectionError("connection reset by peer")
    return found


@nightly.step
async def rates() -> dict[str, float]:
    await asyncio.sleep(1.3)
    return {"CHF": 1.05, "NOK": 0.085}


@nightly.step
async def validate(orders: list[dict[str, object]] = after(orders)) -> list[dict[str, object]]:
    await asyncio.sleep(0.5)
    return orders


@nightly.step
async def stock(rates: dict[str, float] = after(rates)) -> dict[str, int]:
    await asyncio.sleep(2.9)
    return {"boots": 12}


@nightly.step
async def features(
    orders: list[dict[str, object]] = after(validate),
    customers: list[dict[str, object]] = after(customers),
) -> list[int]:
    await asyncio.sleep(0.8)
    seasons = {"spring": 0, "summer": 1, "autumn": 2, "winter": 3}
    return [seasons[str(order["season"])] for order in orders]


@nightly.step
async def train(features: list[int] = after(features)) -> str:
    return "model-1"


@nightly.step
async def forecast(model: str = after(train), stock: dict[str, int] = after(stock)) -> None: ...


@nightly.step
async def publish(model: str = after(train)) -> None: ...


@nightly.step(depends_on=["features"], run_if="failure")
async def notify() -> None:
    await asyncio.sleep(0.2)
