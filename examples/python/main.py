"""Serves the user feed and the delivery tracker."""

import asyncio
import os

import hypercorn.asyncio
import hypercorn.config
import restate

from delivery_tracker import delivery_tracker
from user_feed import user_feed

app = restate.app(services=[user_feed, delivery_tracker])

if __name__ == "__main__":
    config = hypercorn.config.Config()
    config.bind = [f"0.0.0.0:{os.environ.get('PORT', '9080')}"]
    asyncio.run(hypercorn.asyncio.serve(app, config))
