"""Markdown to safe HTML, on the server: CommonMark and tables, code highlighted, no raw HTML.

What a model or a person wrote can never become a script, a form, or a request to another host: HTML is
shown as text, images are replaced by their description, links go only to http(s) and mail addresses and
carry rel="noopener nofollow". `blocks` gives one piece of HTML per top-level block, so that a page that
follows a reply as it grows replaces only its last piece.

Whatever the text, it takes no more than about a second of one processor: lexers, links that never end, tables
and quotes can take far more than their length, so that all have limits, above which text is shown plain.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from itertools import groupby
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_all_lexers, get_lexer_by_name

ALLOWED_SCHEMES = ("http", "https", "mailto")
LONGEST_MARKDOWN, MOST_LINES = 20_000, 2_000
"""Characters and lines of a text; more is shown as it was written. A line deep in quotes takes 0.2 ms."""
MOST_BRACKETS = 4_000
"""Of `[`, each of which may open a link: 0.03 ms apiece where none does."""
MOST_CELLS = 10_000
"""Lines of a paragraph times the columns of the widest, as rows of a table are filled up: 0.02 ms apiece."""
_DEEPEST = 20
"""Quotes, lists and their entries within each other, or brackets."""
LONGEST_HIGHLIGHTED = 2_000
"""Characters of code that get colours: at most 0.3 s, whatever they are, in the languages below."""
MOST_HIGHLIGHTED = 3 * LONGEST_HIGHLIGHTED
"""Characters of code that get colours in one text."""
_LONG_GAP = re.compile(r"\s{100}")
"""No code has it, and of 2,000 blank lines the lexer of C would think for half a second."""
_COLOURED = [
    *("Bash", "C", "C++", "CSS", "Diff", "Docker", "Go", "HTML", "INI", "Java", "JavaScript", "JSON"),
    *("Kotlin", "PHP", "Python", "Ruby", "Rust", "SQL", "Swift", "TOML", "TypeScript", "XML", "YAML"),
]
LANGUAGES = frozenset(
    alias for name, aliases, *_ in get_all_lexers(plugins=False) if name in _COLOURED for alias in aliases
)
"""What code may be called to get colours. Other lexers of pygments take minutes for a page of blanks, or, as
that of C# does, of names."""


def render(text: str) -> str:
    """The HTML of a whole text."""
    return "".join(blocks(text))


def blocks(text: str) -> list[str]:
    """The HTML of a text, one piece per top-level block, in order."""
    text = _printable(text)
    if _takes_long(text):
        return [_as_written(text)]
    tokens = _PARSER.parse(text)
    coloured: EnvType = {"left": MOST_HIGHLIGHTED}
    pieces: list[str] = []
    start = 0
    for end, token in enumerate(tokens, start=1):
        if token.level == 0 and token.nesting <= 0:
            pieces.append(_PARSER.renderer.render(tokens[start:end], _PARSER.options, coloured))
            start = end
    return pieces


def _takes_long(text: str) -> bool:
    """Whether the parser may need more than its share for a text."""
    if len(text) > LONGEST_MARKDOWN or text.count("[") > MOST_BRACKETS:
        return True
    lines = text.splitlines()
    return len(lines) > MOST_LINES or _cells(lines) > MOST_CELLS


def _cells(lines: list[str]) -> int:
    """How many there may be in all tables: none goes on after a blank line."""
    total = 0
    for is_blank, together in groupby(lines, lambda line: not line.strip()):
        columns = [line.count("|") for line in together]
        total += 0 if is_blank else len(columns) * max(columns)
    return total


def _as_written(text: str) -> str:
    """One paragraph with its own lines and blanks, by the page's style."""
    return f'<p class="plain">{escape(text)}</p>\n'


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
    """The code with pygments' spans."""
    return str(highlight(code, get_lexer_by_name(language, stripnl=False), HtmlFormatter(nowrap=True)))


def _code(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    token = tokens[index]
    language = token.info.split(maxsplit=1)[0][:40] if token.info.strip() else ""
    label = f'<span class="code-language">{escape(language)}</span>' if language else ""
    code = token.content
    if _can_highlight(code, language) and len(code) <= env["left"]:
        env["left"] -= len(code)
        shown = _highlighted(code, language.lower())
    else:
        shown = escape(code)
    return f'<div class="code">{label}<pre><code>{shown}</code></pre></div>'


def _can_highlight(code: str, language: str) -> bool:
    is_short = len(code) <= LONGEST_HIGHLIGHTED and not _LONG_GAP.search(code)
    return is_short and language.lower() in LANGUAGES


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
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": _DEEPEST}).enable("table")
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
