"""Two steps that count how often they run, on hypercorn, the server that the Python SDK's documentation names."""

import asyncio
import os
from collections import Counter

import hypercorn.asyncio
import hypercorn.config
import restate

counted = restate.Service("Counted")
runs: Counter[tuple[int, str]] = Counter()


@counted.handler()
async def steps(ctx: restate.Context, number: int) -> int:
    async def step(name: str) -> str:
        runs[(number, name)] += 1
        return name

    await ctx.run_typed("first", step, name="first")
    await ctx.run_typed("second", step, name="second")
    return number


@counted.handler()
async def tally(ctx: restate.Context) -> list[int]:
    """How many steps there were, and how many runs of them."""
    return [len(runs), sum(runs.values())]


if __name__ == "__main__":
    config = hypercorn.config.Config()
    config.bind = [f"127.0.0.1:{os.environ['PORT']}"]
    config.keep_alive_max_requests = int(os.environ.get("REQUESTS_MAX", config.keep_alive_max_requests))
    asyncio.run(hypercorn.asyncio.serve(restate.app(services=[counted]), config))
