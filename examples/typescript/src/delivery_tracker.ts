import * as restate from "@restatedev/restate-sdk";

type Location = { timestamp: number; latitude: number; longitude: number };
type Delivery = { title: string; locations: Location[] };
type State = { delivery: Delivery };

/** One delivery per key: where it has been, in the order of the events. */
export const deliveryTracker = restate.object({
  name: "DeliveryTracker",
  handlers: {
    /** Starts a delivery; an empty event (a Kafka tombstone) forgets it. */
    register: async (ctx: restate.ObjectContext<State>, event?: { title: string }): Promise<void> => {
      if (event) ctx.set("delivery", { title: event.title, locations: [] });
      else ctx.clear("delivery");
    },

    setLocation: async (ctx: restate.ObjectContext<State>, location: Location): Promise<void> => {
      const delivery = known(ctx.key, await ctx.get("delivery"));
      ctx.set("delivery", { ...delivery, locations: [...delivery.locations, location] });
    },

    getDelivery: restate.handlers.object.shared(
      async (ctx: restate.ObjectSharedContext<State>): Promise<Delivery> => known(ctx.key, await ctx.get("delivery")),
    ),
  },
});

/** A terminal error ends the invocation: it would be no use to try again. */
function known(key: string, delivery: Delivery | null): Delivery {
  if (delivery === null) {
    throw new restate.TerminalError(`delivery ${key} is not registered`, { errorCode: 404 });
  }
  return delivery;
}
