"""What was found out once and can be found out again, kept in a small JSON file.

A file that is missing, or that a power cut or another release left damaged, is an empty memory: what it held
is found out again.
"""

import json
import logging
from pathlib import Path
from typing import Any

from data.files import file_to_be

log = logging.getLogger(__name__)


def recall(file: Path) -> dict[str, Any]:
    """What `file` holds; nothing where it is missing or is no JSON object, which a line in the log says."""
    try:
        known = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read (%s): what it held is found out again.", file, error)
        return {}
    if not isinstance(known, dict):
        log.warning("%s holds no JSON object: what it held is found out again.", file)
        return {}
    return known


def remember(file: Path, known: dict[str, Any]) -> None:
    """Replace `file`, whole or not at all. Raises Refused where it cannot be written."""
    with file_to_be(file) as part:
        part.write_text(json.dumps(known, indent=1), encoding="utf-8")
