"""The page of what runs where says what the tests prove."""

from pathlib import Path

from helpers.deployment import NEEDS, page
from helpers.exports import EXPORTS

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"


def test_the_page_is_what_the_cases_give():
    remedy = "cd tests; python -m helpers.deployment --write ../docs/deployment.md"
    assert PAGE.read_text() == page(), remedy


def test_every_runtime_says_what_it_needs():
    assert NEEDS.keys() == EXPORTS.keys()
