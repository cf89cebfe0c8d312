"""What lies in a run's folder, `var/runs/ID`: the names that more than one module goes by.

The trainer's stages write there, a run that was killed is taken up from there, the operator's page shows the
reports, pruning and deletions clear it.
"""

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
REPORT = "report.json"
"""What came of the run."""
