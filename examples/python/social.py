"""The social network that the user feed talks to: the service at SOCIAL_URL, or a stand-in that answers in this process."""

import os
import random
import uuid
from typing import TypedDict
from urllib.parse import quote

import httpx

SOCIAL_URL = os.environ.get("SOCIAL_URL")

client = httpx.AsyncClient(base_url=SOCIAL_URL or "", limits=httpx.Limits(max_connections=64), trust_env=False)


class Post(TypedDict):
    id: str
    content: str


async def create_post(user: str, post: Post) -> str:
    if not SOCIAL_URL:
        return str(uuid.uuid4())
    return (await request("POST", "/posts", {"user": user, **post}))["postId"]


async def get_status(post_id: str) -> str:
    if not SOCIAL_URL:
        return random.choice(["PENDING", "DONE"])
    return (await request("GET", f"/posts/{quote(post_id, safe='')}/status"))["status"]


async def update_feed(user: str, post_id: str) -> None:
    if SOCIAL_URL:
        await request("POST", f"/feeds/{quote(user, safe='')}", {"postId": post_id})


async def request(method: str, path: str, body: dict | None = None) -> dict:
    response = await client.request(method, path, json=body)
    response.raise_for_status()
    return response.json()
