"""All benchmark cases."""

import re
from enum import StrEnum

from d2lfast.bench import (
    cases_batch_norm,
    cases_book,
    cases_conv2d,
    cases_loss,
    cases_pool2d,
    cases_recurrent,
)
from d2lfast.bench.case import Case


class Suite(StrEnum):
    """Which cases: a choice for every family, or every convolution of the book's networks."""

    DEFAULT = "default"
    BOOK = "book"


def cases(pattern: str = "", suite: Suite = Suite.DEFAULT) -> list[Case]:
    """The cases whose name contains a match of the regular expression, in the order of the tables.

    Raises:
        re.error: `pattern` is no regular expression.
    """
    found = re.compile(pattern)
    if suite is Suite.BOOK:
        return [case for case in cases_book.book_cases() if found.search(case.name)]
    families = (cases_conv2d, cases_pool2d, cases_batch_norm, cases_recurrent, cases_loss)
    return [case for family in families for case in family.CASES if found.search(case.name)]
