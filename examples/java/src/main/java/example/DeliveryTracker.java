package example;

import dev.restate.sdk.ObjectContext;
import dev.restate.sdk.SharedObjectContext;
import dev.restate.sdk.annotation.Handler;
import dev.restate.sdk.annotation.Shared;
import dev.restate.sdk.annotation.VirtualObject;
import dev.restate.sdk.common.StateKey;
import dev.restate.sdk.common.TerminalException;
import java.util.ArrayList;
import java.util.List;

/** One delivery per key: where it has been, in the order of the events. */
@VirtualObject
public class DeliveryTracker {
  public record Registration(String title) {}

  public record Location(long timestamp, double latitude, double longitude) {}

  public record Delivery(String title, List<Location> locations) {}

  private static final StateKey<Delivery> DELIVERY = StateKey.of("delivery", Delivery.class);

  @Handler
  public void register(ObjectContext ctx, Registration registration) {
    ctx.set(DELIVERY, new Delivery(registration.title(), List.of()));
  }

  @Handler
  public void setLocation(ObjectContext ctx, Location location) {
    Delivery delivery = getDelivery(ctx);
    List<Location> locations = new ArrayList<>(delivery.locations());
    locations.add(location);
    ctx.set(DELIVERY, new Delivery(delivery.title(), locations));
  }

  /** Fails with a terminal error if the delivery is unknown: it would be no use to try again. */
  @Shared
  public Delivery getDelivery(SharedObjectContext ctx) {
    return ctx.get(DELIVERY)
        .orElseThrow(() -> new TerminalException(404, "delivery " + ctx.key() + " is not registered"));
  }
}
