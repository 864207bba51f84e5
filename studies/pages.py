"""Fill the tables of a page with what a study found."""

import re
from collections.abc import Callable, Mapping

from relic.errors import InputError

_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def fill_tables(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Replace each table of `page`, between `<!-- table: NAME -->` and `<!-- end of table -->`, by `tables[NAME]()`.

    Raises InputError for a name that is not in `tables`.
    """

    def table(marked: re.Match[str]) -> str:
        if marked[2] not in tables:
            raise InputError(f"<!-- table: {marked[2]} -->: there is no such table, only {', '.join(tables)}")
        return f"{marked[1]}{tables[marked[2]]()}{marked[3]}"

    return _MARKED.sub(table, page)
