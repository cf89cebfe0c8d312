"""How every Gradio page looks: the theme, the style sheet and what goes into the head of the document.

Calm, one accent colour, fonts that the machine already has, nothing from another host. The style sheet
travels inside the head because Gradio rewrites the selectors of its own `css` argument. With it go the words
of every language and `page.js`, the few functions that the scripts of all components share.
"""

import json
from functools import cache
from pathlib import Path

import gradio as gr

from chatbot.pages import markdown, words

HERE = Path(__file__).parent
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Noto Sans CJK SC", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", "Noto Sans Mono CJK SC", "monospace")


def theme() -> gr.themes.Base:
    """Gradio's base theme in our colours."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.zinc,
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_lg,
    ).set(
        body_background_fill="#f6f6fb",
        body_background_fill_dark="#11111b",
        body_text_color="#1e1b2e",
        body_text_color_dark="#eceaf6",
        body_text_color_subdued="#5f5d70",
        body_text_color_subdued_dark="#a3a1b8",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1a1a28",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1a1a28",
        background_fill_secondary="#f6f6fb",
        background_fill_secondary_dark="#161622",
        border_color_primary="#dcdbe8",
        border_color_primary_dark="#34334a",
        button_primary_background_fill="#4f46e5",
        button_primary_background_fill_hover="#4338ca",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="#818cf8",
        button_primary_background_fill_hover_dark="#a5b4fc",
        button_primary_text_color_dark="#14122b",
        color_accent="#4f46e5",
        link_text_color="#4f46e5",
        link_text_color_dark="#a5b4fc",
    )


@cache
def css() -> str:
    """The style sheet of the pages, with the colours of highlighted code."""
    sheets = [(HERE / name).read_text(encoding="utf-8") for name in ("look.css", "board.css")]
    return "\n".join([*sheets, markdown.code_css(dark=False), markdown.code_css(dark=True)])


@cache
def head() -> str:
    """What goes into the head of a page: icon, style sheet, words and shared script. Constant."""
    texts = {language: words.table(language) for language in words.LANGUAGES}
    table = json.dumps(texts, ensure_ascii=False).replace("<", "\\u003c")
    names = json.dumps(words.LANGUAGES, ensure_ascii=False)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return (
        '<link rel="icon" type="image/svg+xml" href="/favicon.ico">'
        '<meta name="color-scheme" content="light dark">'
        f"<style>{css()}</style>"
        f"<script>window.nightWords = {table}; window.nightLanguages = {names};\n{script}</script>"
    )
