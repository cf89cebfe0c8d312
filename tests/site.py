"""The whole application for tests, built as the server builds it: inside a running event loop."""

import asyncio

from fastapi import FastAPI

from chatbot.config import ServeConfig
from chatbot.following import Follower
from chatbot.metrics import Metrics
from chatbot.turns import Turns
from chatbot.web import Site, mount_pages, open_site
from data.database import Database
from data.home import Home


def built_app(db: Database, turns: Turns, home: Home, config: ServeConfig | None = None) -> FastAPI:
    """Outside a loop Gradio opens one of its own and never closes it."""

    async def build() -> FastAPI:
        app = open_site(Site(db, home, config or ServeConfig(), Metrics(db)))
        mount_pages(app, turns, Follower(db, home, turns.engine))
        return app

    return asyncio.run(build())
