"""What lies in a run's folder, `var/runs/ID`: the names that more than one module goes by, and what a later
night needs of it.

The trainer's stages write there, a run that was killed is taken up from there, the operator's page shows the
reports, pruning and deletions clear it.
"""

import re
from pathlib import Path

LOG = "output.log"
"""What the run printed: stages and figures, nobody's words."""
TAKEN_UP = "taken-up"
"""The watcher's mark that it has taken the run up once by itself."""
SNAPSHOT = "snapshot.jsonl"
"""The rankings that the run learns from."""
LEARNED = "learned.json"
"""Which rankings the reward models learned from, tonight's and those of the nights before."""
EXAMINATIONS = "reports.json"
"""What became of the reward models: there before the report."""
HISTORY = "ppo.json"
"""The figures of every update: there once there is a candidate to judge."""
REPORT = "report.json"
"""What came of the run."""
JUDGE = "judge"
"""The reward model that enters no reward. Like the members of the ensemble a folder; in memory an adapter."""


def reward_model(i: int) -> str:
    """The name of the ensemble's member `i`, counted from 0."""
    return f"reward-{i}"


def is_reward_model(name: str) -> bool:
    """Whether it is a member of the ensemble or the judge."""
    return name == JUDGE or re.fullmatch(r"reward-\d+", name) is not None


def can_go_on(folder: Path, members: int) -> bool:
    """Whether all is there that a night with so many members needs to go on from these reward models."""
    wanted = [LEARNED, JUDGE, *(reward_model(i) for i in range(members))]
    return all((folder / name).exists() for name in wanted)
