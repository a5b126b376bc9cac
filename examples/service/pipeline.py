"""The pipeline: what happens to an order. It knows nothing of HTTP servers or services."""

from __future__ import annotations

import httpx
from pydantic import BaseModel, Field

from asyncflow import Pipeline, after, current_step

from .clients import Ledger


class Item(BaseModel):
    sku: str = Field(min_length=1)
    quantity: int = Field(ge=1, le=1_000)


class Order(BaseModel):
    customer: str = Field(min_length=1)
    items: list[Item] = Field(min_length=1)


class Receipt(BaseModel):
    order_id: str
    customer: str
    total_cents: int
    payment: str


orders = Pipeline("orders")


@orders.step(max_retries=3, retry=200, timeout_ms=5_000)
async def price(order: Order, http: httpx.AsyncClient) -> int:
    """Return what the order costs, in cents."""
    response = await http.get("/prices", params={"sku": [item.sku for item in order.items]})
    prices = response.raise_for_status().json()
    return sum(int(prices[item.sku]) * item.quantity for item in order.items)


@orders.step(max_retries=3, retry=200, timeout_ms=5_000)
async def charge(order: Order, http: httpx.AsyncClient, cents: int = after(price)) -> str:
    """Charge the customer, once: the shop knows the key of an attempt that it saw before."""
    response = await http.post(
        "/payments",
        json={"customer": order.customer, "cents": cents},
        headers={"Idempotency-Key": current_step().idempotency_key},
    )
    return str(response.raise_for_status().json()["payment"])


@orders.step(max_retries=3, retry=200)
async def book(
    order: Order, db: Ledger, cents: int = after(price), payment: str = after(charge)
) -> Receipt:
    """Write the order into the ledger, and return the receipt."""
    order_id = current_step().run_id
    await db.book(order_id, order.customer, cents)
    return Receipt(order_id=order_id, customer=order.customer, total_cents=cents, payment=payment)


quotes = Pipeline("quotes")
quotes.step(price, max_retries=3, timeout_ms=5_000)
