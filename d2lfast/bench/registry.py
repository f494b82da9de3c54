"""All benchmark cases."""

import re

from d2lfast.bench import cases_batch_norm, cases_conv2d, cases_pool2d, cases_recurrent
from d2lfast.bench.case import Case


def cases(pattern: str = "") -> list[Case]:
    """The cases whose name contains a match of the regular expression, in the order of the tables.

    Raises:
        re.error: `pattern` is no regular expression.
    """
    found = re.compile(pattern)
    families = (cases_conv2d, cases_pool2d, cases_batch_norm, cases_recurrent)
    return [case for family in families for case in family.CASES if found.search(case.name)]
