"""Markdown to safe HTML, on the server: CommonMark and tables, code highlighted, no raw HTML.

What a model or a person wrote can never become a script, a form, or a request to another host: HTML is
shown as text, images are replaced by their description, links go only to http(s) and mail addresses and
carry rel="noopener nofollow". `blocks` gives one piece of HTML per top-level block, so that a page that
follows a reply as it grows replaces only its last piece.
"""

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

ALLOWED_SCHEMES = ("http", "https", "mailto")
LONGEST_HIGHLIGHTED = 20_000
"""Characters of code; longer code is shown plain, since highlighting is not linear for every lexer."""


def render(text: str) -> str:
    """The HTML of a whole text."""
    return "".join(blocks(text))


def blocks(text: str) -> list[str]:
    """The HTML of a text, one piece per top-level block, in order."""
    tokens = _PARSER.parse(_printable(text))
    pieces: list[str] = []
    start = 0
    for end, token in enumerate(tokens, start=1):
        if token.level == 0 and token.nesting <= 0:
            pieces.append(_PARSER.renderer.render(tokens[start:end], _PARSER.options, {}))
            start = end
    return pieces


def settled_blocks(text: str) -> list[str]:
    """The same of a text that changes no more, rendered once however many pages look at it."""
    return list(_settled(text))


@lru_cache(maxsize=1024)
def _settled(text: str) -> tuple[str, ...]:
    return tuple(blocks(text))


def code_css(dark: bool) -> str:
    """The colours of highlighted code, without red boxes: a model's snippet need not parse."""
    style, scope = ("github-dark", ".dark .code") if dark else ("default", ".code")
    rules = str(HtmlFormatter(style=style).get_style_defs(scope))  # type: ignore[no-untyped-call]
    return "\n".join(
        rule for rule in rules.splitlines() if rule.startswith(f"{scope} .") and ".err " not in rule
    )


def is_safe_link(url: str) -> bool:
    """Only http, https and mailto, and nothing hidden before the scheme."""
    try:
        return urlsplit(url).scheme.lower() in ALLOWED_SCHEMES
    except ValueError:
        return False


def _printable(text: str) -> str:
    """Lone surrogates cannot be sent as UTF-8; they become the replacement character."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


@lru_cache(maxsize=512)
def _highlighted(code: str, language: str) -> str:
    """The code with pygments' spans, or only escaped where the language is unknown or the code too long."""
    if not language or len(code) > LONGEST_HIGHLIGHTED:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return escape(code)
    return str(highlight(code, lexer, HtmlFormatter(nowrap=True)))


def _code(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    token = tokens[index]
    language = token.info.split(maxsplit=1)[0][:40] if token.info.strip() else ""
    label = f'<span class="code-language">{escape(language)}</span>' if language else ""
    return f'<div class="code">{label}<pre><code>{_highlighted(token.content, language)}</code></pre></div>'


def _link(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    token = tokens[index]
    token.attrs = {
        "href": str(token.attrs.get("href", "")),
        "rel": "noopener nofollow",
        "target": "_blank",
    }
    return renderer.renderToken(tokens, index, options, env)


def _image(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """An image is only its description: fetching it would tell its host who reads this."""
    said = renderer.renderInlineAsText(tokens[index].children, options, env)
    return f'<span class="image">{escape(said)}</span>'


def _table(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    is_opening = tokens[index].nesting == 1
    return '<div class="table"><table>' if is_opening else "</table></div>"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 30}).enable("table")
    # The library's own check lets unknown schemes through; a link that is not safe stays text.
    parser.validateLink = is_safe_link  # type: ignore[method-assign]
    for name, rule in (
        ("fence", _code),
        ("code_block", _code),
        ("link_open", _link),
        ("image", _image),
        ("table_open", _table),
        ("table_close", _table),
    ):
        parser.add_render_rule(name, rule)
    return parser


_PARSER = _parser()
