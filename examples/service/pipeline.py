"""The pipelines: what happens to an order. They know nothing of HTTP servers or services."""

from __future__ import annotations

from typing import Literal

import httpx
from pydantic import BaseModel, Field

from asyncflow import Pipeline, after, current_step

from .clients import Ledger

Tenant = Literal["acme", "initech", "umbrella"]

TO_APPROVE_CENTS = 100_000
"""An order that costs more waits until a person has approved it."""


class Item(BaseModel):
    sku: str = Field(min_length=1)
    quantity: int = Field(ge=1, le=1_000)


class Order(BaseModel):
    tenant: Tenant = "acme"
    customer: str = Field(min_length=1)
    items: list[Item] = Field(min_length=1)


class Receipt(BaseModel):
    order_id: str
    tenant: Tenant
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


def to_approve(order: Order, price: int) -> str:
    """Return what the pages of the journal, and `asyncflow show`, ask who approves orders."""
    items = ", ".join(f"{item.quantity} x {item.sku}" for item in order.items)
    return f"{order.customer}, of {order.tenant}, orders {items} for {price / 100:,.2f}. Charge it?"


# A day; an order that is not approved by then is refused.
approved = orders.signal(
    "approved",
    bool,
    description=to_approve,
    depends_on=[price],
    when=lambda price: price > TO_APPROVE_CENTS,
    deadline_ms=86_400_000,
    default=False,
)


# A small order needs no approval: its signal is skipped, and `approved` is the default of `charge`.
@orders.step(
    max_retries=3,
    retry=200,
    timeout_ms=5_000,
    run_if="unless_failed",
    depends_on=[approved],
    when=lambda approved=True: approved,
)
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
    await db.book(order_id, order.tenant, order.customer, cents)
    return Receipt(
        order_id=order_id,
        tenant=order.tenant,
        customer=order.customer,
        total_cents=cents,
        payment=payment,
    )


quotes = Pipeline("quotes")
quotes.step(price, max_retries=3, timeout_ms=5_000)


statements = Pipeline("statements")


@statements.step(max_retries=3, retry=200)
async def total(tenant: Tenant, db: Ledger) -> int:
    """Return what the orders of a tenant come to, in cents."""
    return await db.total(tenant)
