"""What reports say is so: every sentence on an example is checked by arithmetic that shares nothing with ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from check_sentences import faults, read

from niffbench import results
from niffbench.report.digest import gather
from niffbench.report.findings import findings
from niffbench.report.trends import all_slices, growths, rivalries

EXAMPLE = Path(__file__).parents[2] / "reports" / "quick-example"


@pytest.fixture(scope="module")
def said() -> list[str]:
    """All sentences on the example, those that a page folds away too."""
    digest = gather(results.read(EXAMPLE))
    slices = all_slices(digest)
    fits = [fit for some in slices.values() for slice_ in some for fit in growths(digest, slice_)]
    return [finding.sentence for finding in findings(digest, slices, fits, rivalries(digest))]


def test_every_sentence_on_the_example_is_so(said: list[str]) -> None:
    assert len(said) > 10
    assert faults(read(EXAMPLE), said) == {}


def test_a_sentence_with_another_number_is_found_out(said: list[str]) -> None:
    """Otherwise the above would prove nothing. Of each kind of number: a factor, a kernel, a count of problems."""
    records = read(EXAMPLE)
    changes = (
        (r"takes ([\d.]+)×", lambda m: f"takes {float(m[1]) * 1.1:.3g}×"),
        (r"up to kernel size (\d+),", "up to kernel size 27,"),
        (r"is ([\w/-]+) at (\d)", lambda m: f"is {m[1]} at {int(m[2]) + 1}"),
        (r"chose native", "chose dft"),
    )
    for pattern, change in changes:
        changed = [re.sub(pattern, change, sentence, count=1) for sentence in said if re.search(pattern, sentence)]
        assert changed, pattern
        assert set(faults(records, changed)) == set(changed), pattern
