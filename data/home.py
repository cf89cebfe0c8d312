"""Where state lives: `var/` under the working directory, or `$NIGHTSCHOOL_HOME`.

The one environment variable of Night School is read here and nowhere else.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from data.errors import NotFound, Problem
from data.files import give_to_owner_of_folder, keep_private


@dataclass(frozen=True)
class Home:
    """The state directory and the names of what lies in it."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "nightschool.db"

    @property
    def address(self) -> Path:
        """Where the server was found last."""
        return self.root / "address.json"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def gradio(self) -> Path:
        """Gradio's own files, of which our pages need none."""
        return self.root / "gradio"


def open_home(root: Path | None = None, *, begins: bool = True) -> Home:
    """The home at `root`, else at `$NIGHTSCHOOL_HOME`, else `./var`; its directories are made if missing.

    With `begins` False, `./var` is taken only where it holds a database, else NotFound: a command that was
    run in another directory must not work on a new, empty home. What somebody named need only be there, as
    the empty volume of a container is: else it was mistyped.
    Database, runs, backups and `gradio` become their owner's alone, as other code may have left them; the
    versions stay readable, for servers of vLLM that run under another account.
    Raises Problem where the directory cannot be written.
    """
    named = root or os.environ.get("NIGHTSCHOOL_HOME")
    home = Home(Path(named or "var").absolute())
    try:
        if not (begins or (home.root if named else home.database).exists()):
            remedy = (
                'check NIGHTSCHOOL_HOME; the first "chatbot serve" makes what it names.'
                if named
                else "run this where you started the server, or set NIGHTSCHOOL_HOME."
            )
            raise NotFound(f"There is no Night School in {str(home.root)!r} - {remedy}")
        for directory in (home.root, home.models, home.adapters, home.runs, home.backups, home.gradio):
            if not directory.is_dir():
                directory.mkdir(parents=True, exist_ok=True)
                give_to_owner_of_folder(directory)
    except OSError as error:
        raise Problem(
            f"The directory {str(home.root)!r} cannot be written ({error.strerror}) - "
            "make it writable, or set NIGHTSCHOOL_HOME to one that is."
        ) from error
    if not os.access(home.root, os.W_OK):
        raise Problem(
            f"The directory {str(home.root)!r} cannot be written - make it writable, "
            "or set NIGHTSCHOOL_HOME to one that is."
        )
    for private in (home.runs, home.backups, home.gradio, *home.root.glob(f"{home.database.name}*")):
        keep_private(private)
    return home
