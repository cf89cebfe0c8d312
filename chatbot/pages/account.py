"""The plain HTML pages: sign in, first operator, set a password, the account, and a sentence when refused.

Plain forms without a script, so that they work before the model and Gradio are loaded. Everything that comes
from a person passes `escape`. The strict policy below replaces Gradio's on these pages.
"""

from html import escape
from importlib.resources import files

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


def sign_in_page(*, name: str = "", next_path: str = "/", said: str = "") -> str:
    return page(
        "Sign in",
        '<div class="card"><h1>Sign in</h1>'
        f'{_said(said)}<form method="post" action="/login">'
        f'<input type="hidden" name="next" value="{escape(next_path)}">'
        f"{_name_field(name)}{_password_field('Password', 'password', 'current-password')}"
        "<button>Sign in</button></form></div>"
        f'<p class="note">{TRAINING_NOTE}</p>'
        '<p class="note">No account yet? An operator makes one for you.</p>',
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


def account_page(person: Person, *, said: str = "", done: str = "") -> str:
    operate = '<a class="button quiet" href="/operate/">Operate</a>' if person.role == "operator" else ""
    return page(
        "Account",
        f'<div class="card"><h1>{escape(person.name)}</h1><p>Signed in as {person.role}.</p>'
        f'<div class="row"><a class="button" href="/">Back to the chat</a>{operate}'
        '<form method="post" action="/logout"><button class="quiet">Sign out</button></form></div></div>'
        f'<div class="card"><h2>Change the password</h2>{_said(said)}{_said(done, "good")}'
        '<form method="post" action="/account/password">'
        f'<input type="text" hidden name="username" autocomplete="username" value="{escape(person.name)}">'
        f"{_password_field('Present password', 'old', 'current-password')}"
        f"{_password_field('New password', 'new', 'new-password', hint='At least 8 characters.')}"
        "<button>Change it</button></form></div>"
        '<div class="card"><h2>My data</h2><p>Every conversation and ranking of yours, as one JSON file.</p>'
        '<div class="row"><a class="button quiet" href="/account/export" download>Export my data</a></div>'
        "</div>"
        '<div class="card"><h2>Sign out everywhere</h2>'
        "<p>Ends every session of yours, on this device and all others.</p>"
        '<div class="row"><form method="post" action="/account/sign-out-everywhere">'
        '<button class="quiet">Sign out everywhere</button></form></div></div>',
        wide=True,
    )


def _said(sentence: str, mood: str = "bad") -> str:
    role = "alert" if mood == "bad" else "status"
    return f'<div class="said {mood}" role="{role}">{escape(sentence)}</div>' if sentence else ""


def _name_field(name: str) -> str:
    focus = "" if name else " autofocus"
    return (
        '<label for="name">Name</label><input id="name" name="name" autocomplete="username" required '
        f'maxlength="64" autocapitalize="none" spellcheck="false" value="{escape(name)}"{focus}>'
    )


def _password_field(label: str, field: str, kind: str, *, hint: str = "") -> str:
    least = ' minlength="8"' if kind == "new-password" else ""
    return (
        f'<label for="{field}">{label}</label><input id="{field}" name="{field}" type="password" required '
        f'maxlength="1024" autocomplete="{kind}"{least}>'
        + (f'<div class="hint">{hint}</div>' if hint else "")
    )
