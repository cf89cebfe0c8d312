"""How well the reward models predict real people, beside two rules that read next to nothing.

    python benchmarks/preferences.py --rows 32 --members 1      # does it run? a few minutes on two cores
    python benchmarks/preferences.py                            # full sizes, the whole ensemble: hours there

The rows are files of published preferences, each as JSON lines {"id", "prompt": [messages], "replies",
"ranking", "source"}, in the folder `--data` (by default `shared/data/preferences` beside the repository):

hh-helpful   trained on the comparisons of HH helpful-online and rejection-sampled, examined on helpful-base
hh-harmless  HH harmless-base, a fifth of its conversations held out
oasst-en     English OpenAssistant, K = 2 to 9, a fifth of its conversations held out

Each is examined once, by the same functions as `trainer reward --data`; every accuracy is of pairs, with an
interval bootstrapped by conversation. The baselines are of the same pairs: the longer reply wins, and a
Bradley-Terry model of which words occur (the 5,000 most frequent, ridge 0.01) fitted to the same rows.

Resumable: a data set whose row lies in `--out` is not run again, and reward models lie beside it, each whole
as soon as it is trained. `--only` chooses data sets; other settings than those of a row make a row of their
own. Any flag of `trainer reward` (`--reward-lr 1e-4`, `--model`, ...) holds here too.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatbot.flags import add_flags, from_flags
from data.cli import ENVIRONMENT, table

if __name__ == "__main__":  # as our commands do, before PyTorch's libraries are loaded and read it
    os.environ.update({**ENVIRONMENT, **os.environ})

import torch
import torch.nn.functional as F
from peers import commit
from tqdm import tqdm

from chatbot.basemodel import Base, load_base
from data.comparisons import RankedTurn
from data.home import open_home
from trainer.config import RefreshConfig
from trainer.scoring import read_parts, train_and_evaluate

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "preferences"
SETS: dict[str, tuple[list[str], list[str]]] = {
    "hh-helpful": (["hh_helpful_online", "hh_helpful_rejection_sampled"], ["hh_helpful_base_half"]),
    "hh-harmless": (["hh_harmless_base_half"], []),
    "oasst-en": (["oasst_en_ranked"], []),
}
"""What each is trained on and examined on; where that is nothing, the first is split by conversation."""

WORD = re.compile(r"\w+")


def main() -> None:
    """One row a data set, one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=SHARED, help="a directory")
    parser.add_argument("--out", type=Path, default=Path("var/benchmark-preferences"), help="a directory")
    parser.add_argument("--rows", type=int, help="the most rows of each file (default: all)")
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS), help="data sets")
    add_flags(parser, RefreshConfig)
    arguments = parser.parse_args()
    config = from_flags(arguments, RefreshConfig)
    base = load_base(config.model, open_home(), lambda sentence: print(sentence, file=sys.stderr))
    rows = [cell(name, base, config, arguments) for name in arguments.only]

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{base.name}, {config.members} reward models, reward_lr {config.reward_lr:g}, seed {config.seed}")
    print("\n".join(as_table(rows)))


def cell(name: str, base: Base, config: RefreshConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of one data set: read where it has been measured with these settings, else measured."""
    settings = {"set": name, "rows": arguments.rows, "base": base.sha256, **asdict(config)}
    file = arguments.out / "rows.json"
    known: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    for row in known:
        if row["settings"] == settings:
            return row
    data, evaluate = ([arguments.data / f"{stem}.jsonl.gz" for stem in stems] for stems in SETS[name])
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    bar = tqdm(total=1000, desc=name, disable=not sys.stderr.isatty())

    def tell(model: str, step: int, fraction: float, metrics: dict[str, float]) -> None:
        bar.update(round(fraction * 1000) - bar.n)

    folder, began_at = arguments.out / f"{name}-{mark}", commit()
    was_begun = any(folder.glob("reward-*"))
    report = train_and_evaluate(
        base,
        data,
        evaluate,
        config,
        tell=tell,
        limit=arguments.rows,
        folder=folder,
    )
    bar.close()
    taught, asked = read_parts(data, evaluate, limit=arguments.rows, seed=config.seed)
    row = {
        "settings": settings,
        "commit": began_at,
        **report,
        "bag_of_words": bag_of_words(taught, asked),
        "was_begun": was_begun,
    }
    file.write_text(json.dumps([*known, row], indent=1))
    return row


def bag_of_words(taught: Sequence[RankedTurn], asked: Sequence[RankedTurn], ridge: float = 0.01) -> float:
    """The accuracy of a Bradley-Terry model, r = w . (which words occur), on the decided pairs."""
    found = Counter(word for turn in taught for reply in turn.replies for word in words(reply))
    vocabulary = {word: at for at, (word, _) in enumerate(found.most_common(5000))}
    x, y = (differences(turns, vocabulary) for turns in (taught, asked))
    w = torch.zeros(len(vocabulary), requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = -F.logsigmoid(x @ w).mean() + ridge * w.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    margins = (y @ w).detach()
    return float(((margins > 0).float() + 0.5 * (margins == 0).float()).mean())


def words(reply: str) -> set[str]:
    return set(WORD.findall(reply.lower()))


def differences(turns: Sequence[RankedTurn], vocabulary: dict[str, int]) -> torch.Tensor:
    """The winner's words less the loser's, of each decided pair: (P, V)."""
    pairs = [(t.replies[p.better], t.replies[p.worse]) for t in turns for p in t.pairs() if p.is_decided]
    x = torch.zeros(len(pairs), len(vocabulary))
    for row, (winner, loser) in enumerate(pairs):
        for sign, reply in ((1.0, winner), (-1.0, loser)):
            known = [vocabulary[word] for word in words(reply) if word in vocabulary]
            x[row, known] += sign
    return x


def as_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a data set."""
    header = [
        "data",
        "commit",
        "rankings",
        "pairs",
        "accuracy",
        "95 %",
        "longest",
        "words",
        "tau",
        "ECE",
        "length",
        "s",
    ]
    return table(header, [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> list[str]:
    low, high = row["accuracy_interval"]
    return [
        row["settings"]["set"],
        row.get("commit", "unknown"),
        str(row["trained_on"]),
        str(row["pairs"]),
        f"{row['accuracy']:.1%}",
        f"{low:.1%} to {high:.1%}",
        f"{row['always_longest']:.1%}",
        f"{row['bag_of_words']:.1%}",
        "-" if row["kendall_tau"] is None else f"{row['kendall_tau']:.2f}",
        "-" if row["ece"] is None else f"{row['ece']:.3f}",
        f"{row['score_length_correlation']:+.2f}",
        "in parts" if row["was_begun"] else f"{row['seconds']:.0f}",
    ]


if __name__ == "__main__":
    main()
