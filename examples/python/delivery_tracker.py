"""The delivery tracker: a delivery's state lives with its key."""

from typing import Optional, TypedDict

from restate import ObjectContext, ObjectSharedContext, VirtualObject
from restate.exceptions import TerminalError


class Location(TypedDict):
    timestamp: int
    latitude: float
    longitude: float


class Registration(TypedDict):
    title: str


class Delivery(Registration):
    locations: list[Location]


# One delivery per key: where it has been, in the order of the events.
delivery_tracker = VirtualObject("DeliveryTracker")


@delivery_tracker.handler()
async def register(ctx: ObjectContext, registration: Registration) -> None:
    ctx.set("delivery", Delivery(title=registration["title"], locations=[]))


@delivery_tracker.handler("setLocation")
async def set_location(ctx: ObjectContext, location: Location) -> None:
    delivery = known(ctx.key(), await ctx.get("delivery", type_hint=Delivery))
    ctx.set("delivery", Delivery(title=delivery["title"], locations=[*delivery["locations"], location]))


@delivery_tracker.handler("getDelivery", kind="shared")
async def get_delivery(ctx: ObjectSharedContext) -> Delivery:
    return known(ctx.key(), await ctx.get("delivery", type_hint=Delivery))


def known(key: str, delivery: Optional[Delivery]) -> Delivery:
    """A terminal error ends the invocation: it would be no use to try again."""
    if delivery is None:
        raise TerminalError(f"delivery {key} is not registered", status_code=404)
    return delivery
