import * as restate from "@restatedev/restate-sdk";
import { deliveryTracker } from "./delivery_tracker.ts";
import { userFeed } from "./user_feed.ts";

restate.serve({ services: [userFeed, deliveryTracker], port: Number(process.env.PORT ?? 9080) });
