"""Details that are easily wrong and spoil a night silently: each is broken in a copy, and a test must notice.

A case is a file, the text that is right, one that is wrong, and the tests that fail with it. `make slow
ARGS=tests/test_mutations.py`: some minutes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("chatbot", "data", "trainer", "tests", "pyproject.toml")

CASES = {
    "the sign of the KL penalty": (
        "trainer/ppo.py",
        "rewards = -beta * (logprob - ref_logprob)",
        "rewards = beta * (logprob - ref_logprob)",
        "test_ppo.py",
    ),
    "what the KL penalty is measured against": (
        "trainer/ppo.py",
        "token_rewards(rollout.logprob, rollout.ref_logprob,",
        "token_rewards(rollout.logprob, rollout.start_logprob,",
        "test_ppo_updates.py",
    ),
    "the position that predicts a token": (
        "trainer/forward.py",
        "return self.states[self._rows, self.at - 1]",
        "return self.states[self._rows, self.at]",
        "test_rollout.py",
    ),
    "returns before whitening": (
        "trainer/ppo.py",
        "return advantages, (advantages + values) * mask",
        "return advantages, (whiten(advantages, mask) + values) * mask",
        "test_ppo.py",
    ),
    "the saved head": (
        "chatbot/policy.py",
        "        if name in self.heads:\n            head = {",
        "        if not self.heads:\n            head = {",
        "test_policy.py",
    ),
    "the temperature of log-probabilities": (
        "trainer/forward.py",
        "return -F.cross_entropy(logits / temperature, tokens,",
        "return -F.cross_entropy(logits, tokens,",
        "test_forward.py",
    ),
    "the target of a tie": (
        "data/comparisons.py",
        "0.5 if is_tie else 1.0",
        "1.0",
        "test_comparisons.py",
    ),
    "replies without an end of turn": (
        "trainer/ppo.py",
        "torch.where(finished, score, score.clamp(max=0.0) - 1.0)",
        "torch.where(finished, score, score.clamp(max=0.0))",
        "test_ppo.py",
    ),
    "the sign of the advantage": (
        "trainer/ppo.py",
        "pg_loss1 = -advantage * ratio",
        "pg_loss1 = advantage * ratio",
        "test_ppo.py",
    ),
    "the side on which the ratio is clipped": (
        "trainer/ppo.py",
        "loss = masked_mean(torch.max(pg_loss1, pg_loss2), mask, count)",
        "loss = masked_mean(torch.min(pg_loss1, pg_loss2), mask, count)",
        "test_ppo.py",
    ),
    "a reference that stays where it is": (
        "trainer/rollout.py",
        "reply_logprobs(policy, forward(roles.reference), temperature)",
        'reply_logprobs(policy, forward("policy"), temperature)',
        "test_rollout.py",
    ),
    "who is examined as the judge": (
        "trainer/fitting.py",
        'members_of(policy) if name == "reward" else [JUDGE]',
        "members_of(policy)",
        "test_fitting.py",
    ),
    "whose report says that the judge can judge": (
        "trainer/refresh.py",
        'check_judge(reports["judge"])',
        'check_judge(reports["reward"])',
        "test_refresh.py",
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and their tests, to be broken."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("detail", CASES)
def test_what_a_case_breaks_is_there(detail: str) -> None:
    file, right, _, _ = CASES[detail]
    assert (ROOT / file).read_text(encoding="utf-8").count(right) == 1, "this case breaks nothing any more"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("detail", CASES)
def test_a_test_notices_that_it_is_wrong(copy: Path, detail: str) -> None:
    file, right, wrong, tests = CASES[detail]
    text = (copy / file).read_text(encoding="utf-8")
    (copy / file).write_text(text.replace(right, wrong), encoding="utf-8")
    done = run_tests(copy, tests)
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tests", sorted({tests for _, _, _, tests in CASES.values()}))
def test_in_a_copy_with_nothing_wrong_they_pass(copy: Path, tests: str) -> None:
    done = run_tests(copy, tests)
    assert done.returncode == 0, done.stdout[-2000:]


def run_tests(copy: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """One file of tests, up to the first that fails."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow and not gpu", f"tests/{tests}"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
