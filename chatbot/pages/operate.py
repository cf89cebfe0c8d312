"""The operator's page: what serves and why, what the night is doing, what was learned, and the few levers.

One tab per noun, each in a file of its own: operate_now (serving, refresh), operate_runs (one run as a page,
and all of them), operate_learning (curves of several), operate_versions (lineage, publish, roll back),
operate_schedule. Mounted at /operate behind its own sign-in check; each function checks the role again
(operate_desk). Of the data the overview has a card, with its backups and downloads; raters and people have no
page yet: the command line serves them.
"""

from collections.abc import Callable
from html import escape
from importlib.resources import files

import gradio as gr

from chatbot.config import ServeConfig
from chatbot.following import Answering
from chatbot.pages.operate_desk import Desk, panel
from chatbot.pages.operate_learning import build_learning
from chatbot.pages.operate_now import build_now
from chatbot.pages.operate_runs import build_runs
from chatbot.pages.operate_schedule import build_schedule
from chatbot.pages.operate_versions import build_versions
from data.database import Database
from data.home import Home

TABS = {
    "overview": build_now,
    "runs": build_runs,
    "learning": build_learning,
    "versions": build_versions,
    "schedule": build_schedule,
}


def build_operate(
    db: Database, home: Home, config: ServeConfig, answering: Callable[[], Answering]
) -> gr.Blocks:
    """The page, ready to be mounted. `home` is named where the page says where things lie."""
    desk = Desk(db, home, config, answering)
    css = files("chatbot.pages").joinpath("operate.css").read_text(encoding="utf-8")
    page = gr.Blocks(title="Operate · Night School", analytics_enabled=False)
    with page:
        panel(f"<style>{css}</style>", "ns-style")
        heading = panel()
        with gr.Tabs():
            for name, build in TABS.items():
                with gr.Tab(name.capitalize(), id=name) as tab:
                    build(desk, page, tab)

        def greet(request: gr.Request) -> str:
            visit = desk.open(request)
            return (
                f"<header class='ns-top'><h1>Night School <span>{visit.html('title')}</span></h1>"
                f"<nav title='{escape(str(home.root))}'>"
                f"<span class='ns-quiet'>{escape(visit.person.name)}</span>"
                f"<a href='/'>{visit.html('to_chat')}</a></nav></header>"
            )

        page.load(greet, None, heading, show_progress="hidden")
    return page
