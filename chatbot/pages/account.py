"""The plain HTML pages: sign in, first operator, set a password, the account and its API keys, and a sentence
when something is refused.

Plain forms without a script, so that they work before the model and Gradio are loaded. Everything that comes
from a person passes `escape`. The strict policy below replaces Gradio's on these pages.
"""

import time
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from data.api_keys import LONGEST_LABEL, ApiKey
from data.forgetting import Forgotten
from data.records import Person

CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
PAGE_HEADERS = {"content-security-policy": CONTENT_POLICY, "cache-control": "no-store"}
TRAINING_NOTE = (
    "What you write and rank here may be used to train this assistant overnight. "
    "You can turn that off for any chat."
)

FIRST_NOTE = (
    '<div class="said good" role="status">No operator yet? Open the link that the terminal printed. '
    "It works once, within 24 hours; restart the server to have a new one printed.</div>"
)


def asset(name: str) -> str:
    """The text of a file that lies beside this one."""
    return files("chatbot.pages").joinpath(name).read_text(encoding="utf-8")


def page(title: str, body: str, *, wide: bool = False, refresh: int | None = None) -> str:
    """A whole page around `body`, which is HTML; `refresh` reloads it after so many seconds."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{again}<title>{escape(title)} · Night School</title>"
        '<link rel="icon" href="/favicon.ico"><link rel="stylesheet" href="/account.css"></head>'
        f'<body><main{" class=wide" if wide else ""}><header><img src="/favicon.ico" alt="">'
        "<div><b>Night School</b><span>The assistant that learns overnight</span></div></header>"
        f"{body}</main></body></html>"
    )


def message_page(sentence: str) -> str:
    """One sentence and the way back."""
    fact, _, remedy = sentence.partition(" - ")
    return page(
        fact,
        f'<div class="card"><h1>{escape(fact.rstrip("."))}</h1>'
        f"<p>{escape(remedy[:1].upper() + remedy[1:])}</p>"
        '<div class="row"><a class="button quiet" href="/">Back to the chat</a></div></div>',
    )


def waiting_page() -> str:
    """What a signed-in person sees while the model loads."""
    return page(
        "Waking up",
        '<div class="card" role="status"><h1>Waking up</h1>'
        "<p>The model is loading. This page opens the chat by itself as soon as it can answer.</p>"
        '<div class="breath"><i></i></div></div>',
        refresh=2,
    )


def sign_in_page(*, name: str = "", next_path: str = "/", said: str = "", has_operator: bool = True) -> str:
    """The form; before there is an operator, who could make accounts, it says where the first one is made."""
    return page(
        "Sign in",
        '<div class="card"><h1>Sign in</h1>'
        f'{_said(said)}{"" if has_operator else FIRST_NOTE}<form method="post" action="/login">'
        f'<input type="hidden" name="next" value="{escape(next_path)}">'
        f"{_name_field(name)}{_password_field('Password', 'password', 'current-password')}"
        "<button>Sign in</button></form></div>"
        f'<p class="note">{TRAINING_NOTE}</p>'
        + ('<p class="note">No account yet? An operator makes one for you.</p>' if has_operator else ""),
    )


def first_operator_page(link: str, *, name: str = "", said: str = "") -> str:
    return page(
        "First operator",
        '<div class="card"><h1>Make the first account</h1>'
        "<p>You will be the operator: you decide who may come in, when it learns, and what serves.</p>"
        f'{_said(said)}<form method="post" action="/login">'
        f'<input type="hidden" name="link" value="{escape(link)}">{_name_field(name)}'
        f"{_password_field('Password', 'password', 'new-password', hint='At least 8 characters.')}"
        "<button>Make the account and sign in</button></form></div>"
        f'<p class="note">{TRAINING_NOTE}</p>',
    )


def set_password_page(link: str, name: str, *, said: str = "") -> str:
    return page(
        "Set a password",
        f'<div class="card"><h1>Hello, {escape(name)}</h1><p>Choose a password to sign in with.</p>'
        f'{_said(said)}<form method="post" action="/set-password">'
        f'<input type="hidden" name="link" value="{escape(link)}">'
        f'<input type="text" hidden name="username" autocomplete="username" value="{escape(name)}">'
        f"{_password_field('Password', 'password', 'new-password', hint='At least 8 characters.')}"
        "<button>Set the password and sign in</button></form></div>"
        f'<p class="note">{TRAINING_NOTE}</p>',
    )


def account_page(
    person: Person, *, password_problem: str = "", password_done: str = "", delete_problem: str = ""
) -> str:
    """A person's own page."""
    operate = '<a class="button quiet" href="/operate/">Operate</a>' if person.role == "operator" else ""
    return page(
        "Account",
        f'<div class="card"><h1>{escape(person.name)}</h1><p>Signed in as {person.role}.</p>'
        f'<div class="row"><a class="button" href="/">Back to the chat</a>{operate}'
        '<form method="post" action="/logout">'
        '<button class="quiet">Sign out</button></form></div></div>'
        '<div class="card"><h2>Change the password</h2>'
        f"{_said(password_problem)}{_said(password_done, 'good')}"
        '<form method="post" action="/account/password">'
        f'<input type="text" hidden name="username" autocomplete="username" value="{escape(person.name)}">'
        f"{_password_field('Present password', 'old', 'current-password')}"
        f"{_password_field('New password', 'new', 'new-password', hint='At least 8 characters.')}"
        "<button>Change it</button></form></div>"
        '<div class="card"><h2>API keys</h2>'
        "<p>With a key, programs made for OpenAI's API can use this server in your name.</p>"
        '<div class="row"><a class="button quiet" href="/account/keys">My API keys</a></div></div>'
        '<div class="card"><h2>My data</h2><p>Every conversation and ranking of yours, as one JSON file.</p>'
        "<p>A chat that you delete teaches no later night. Copies in the folders of earlier nights and in "
        "backups stay until these are removed, which happens by itself after a while.</p>"
        '<div class="row"><a class="button quiet" href="/account/export" download>Export my data</a></div>'
        "</div>"
        f'<div class="card" id="delete"><h2>Delete me</h2>{_said(delete_problem)}'
        "<p>Deletes your account, chats and rankings, and the files of nights that read them. It cannot be "
        "undone. A version that has learned from you keeps what it learned until another serves, and backups "
        "keep your words until they are rotated out, for four weeks where no operator keeps them longer.</p>"
        '<form method="post" action="/account/delete#delete">'
        f"{_password_field('Password', 'password', 'current-password', id='delete-password')}"
        '<button class="quiet">Delete everything of mine</button></form></div>'
        '<div class="card"><h2>Sign out everywhere</h2>'
        "<p>Ends every session of yours, on this device and all others, and revokes your API keys.</p>"
        '<div class="row"><form method="post" action="/account/sign-out-everywhere">'
        '<button class="quiet">Sign out everywhere</button></form></div></div>',
        wide=True,
    )


def keys_page(
    person: Person, keys: Sequence[ApiKey], address: str, *, new_key: str = "", said: str = ""
) -> str:
    """A person's keys; `new_key` is shown now and never again. `address` is where programs find the API."""
    return page(
        "API keys",
        f'<div class="card"><h1>API keys</h1><p>With one, a program speaks for {escape(person.name)}. '
        "Nothing it asks is stored or trained on.</p>"
        f"{_new_key(new_key)}{_said(said)}"
        '<form method="post" action="/account/keys"><label for="label">What is it for?</label>'
        f'<input id="label" name="label" maxlength="{LONGEST_LABEL}" autocomplete="off" '
        'placeholder="My editor"><button>Make a key</button></form></div>'
        f"{''.join(_key_card(key) for key in sorted(keys, key=lambda key: key.is_revoked))}"
        '<div class="card"><h2>How to use one</h2><p>Give your program these two, and a key:</p>'
        f'<label for="address">Address</label><input id="address" readonly value="{escape(address)}">'
        '<label for="model">Model</label><input id="model" readonly value="night-school"></div>'
        '<div class="row"><a class="button quiet" href="/account/">Back to the account</a></div>',
        wide=True,
    )


def _new_key(key: str) -> str:
    if not key:
        return ""
    return (
        '<div class="said good" role="status">This is the new key. Copy it now: it is not shown again.</div>'
        f'<label for="key">New key</label><input id="key" readonly autofocus value="{escape(key)}">'
    )


def _key_card(key: ApiKey) -> str:
    label = escape(key.label or "No label")
    used = f"last used {_day(key.last_used_at)}" if key.last_used_at else "never used"
    ends = f"revoked {_day(key.revoked_at)}" if key.revoked_at else used
    revoke = (
        f'<div class="row"><form method="post" action="/account/keys/{escape(key.id)}/revoke">'
        f'<button class="quiet" aria-label="Revoke {label}">Revoke</button></form></div>'
    )
    return (
        f'<div class="card"><h2>{label}</h2>'
        f"<p>{escape(key.prefix)}… · made {_day(key.created_at)} · {ends}</p>"
        f"{'' if key.is_revoked else revoke}</div>"
    )


def _day(at: float | None) -> str:
    """The date, in UTC, as the page knows no zone."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _said(sentence: str, mood: str = "bad") -> str:
    role = "alert" if mood == "bad" else "status"
    return f'<div class="said {mood}" role="{role}">{escape(sentence)}</div>' if sentence else ""


def _name_field(name: str) -> str:
    focus = "" if name else " autofocus"
    return (
        '<label for="name">Name</label><input id="name" name="name" autocomplete="username" required '
        f'maxlength="64" autocapitalize="none" spellcheck="false" value="{escape(name)}"{focus}>'
    )


def farewell_page(done: Forgotten) -> str:
    """What a person reads who had everything deleted."""
    more = "Versions learned from them; an operator decides how long one serves. " if done.versions else ""
    more += "" if done.is_wiped else "The database's log keeps old pages until the server starts again."
    return page(
        "Deleted",
        '<div class="card"><h1>You are forgotten</h1>'
        f"<p>Chats deleted: {done.conversations}. Rankings deleted: {done.rankings}. {more}</p>"
        '<div class="row"><a class="button quiet" href="/login">To the sign-in page</a></div></div>',
    )


def _password_field(label: str, field: str, kind: str, *, hint: str = "", id: str = "") -> str:
    least = ' minlength="8"' if kind == "new-password" else ""
    return (
        f'<label for="{id or field}">{label}</label>'
        f'<input id="{id or field}" name="{field}" type="password" required '
        f'maxlength="1024" autocomplete="{kind}"{least}>'
        + (f'<div class="hint">{hint}</div>' if hint else "")
    )
