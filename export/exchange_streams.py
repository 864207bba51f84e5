"""Decode the streams of each runtime in all others: `python export/exchange_streams.py --export D --images FOLDER`."""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: same import root as `python -m export.exchange_streams`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export.exchange.config import ExchangeConfig
from export.exchange.plan import make_plan
from relic.cli import parse
from relic.errors import before_work, command

PROG = "export/exchange_streams.py"


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Exchange. Exit code 0: every stream has the symbols that were sent. 1: one has not. 2: wrong flags."""
    config = parse(ExchangeConfig, argv, prog=PROG)
    with before_work():
        plan = make_plan(config)

    from export.exchange.runtimes import exchange_all
    from export.exchange.streams import exchange_table, failures_line, num_failures
    from relic.files import write_json

    exchange = exchange_all(plan)
    print(f"{exchange_table(exchange)}\n\n{failures_line(exchange)}")
    if config.json is not None:
        write_json(config.json, {**exchange._asdict(), "pairs": [pair._asdict() for pair in exchange.pairs]})
    return 1 if num_failures(exchange) else 0


if __name__ == "__main__":
    sys.exit(main())
