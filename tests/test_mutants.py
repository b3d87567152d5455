"""The named changes of `make mutants` still fit the source."""

import pytest

from tests.mutants.mutant import ROOT
from tests.mutants.named import NAMED


@pytest.mark.parametrize("mutant", NAMED, ids=lambda mutant: mutant.what)
def test_it_changes_one_place_and_has_tests(mutant):
    source = (ROOT / mutant.path).read_text(encoding="utf-8")
    assert mutant.apply(source) != source
    tests = [ROOT / path.split("::")[0] for path in (*mutant.nearest_tests(), *mutant.tests())]
    assert tests
    assert all(path.exists() for path in tests)
