"""What runs tasks: `prep/pool.py` in processes of this machine, `prep/cluster.py` on a Ray cluster."""

import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from relic.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")
ReportItem = Callable[[int], None]
"""`work` calls it with the number of the item that it starts next."""
Work = Callable[[Task, ReportItem], Result]


class RunningItems(NamedTuple):
    """Number of items begun in the tasks that are running."""

    running_items: int


class Finished(NamedTuple, Generic[Task, Result]):
    """A task and its result."""

    task: Task
    result: Result


class Engine(Protocol):
    """Runs `work(task, report)` for every task; yields each result when it is done, and progress.

    `work`, tasks and results must be picklable. `describe(task, item)` names the item for the message about a worker
    that died. Raises InputError and OSError as `work` raised them, InputError for a task whose worker died too often,
    and RuntimeError with the worker's traceback for any other error. When it is left for any reason (end, error,
    cancel), it kills the running workers and waits for them. This is safe because shards are published atomically.
    """

    def __call__(
        self, work: Work[Any, Any], tasks: Sequence[Any], *, describe: Callable[[Any, int], str]
    ) -> Generator[Finished[Any, Any] | RunningItems, None, None]: ...


class Failure(NamedTuple):
    """How a task ended in its worker, if not with a result."""

    error: Exception | None
    """An InputError or OSError, to be raised again in the parent; None for a bug."""
    trace: str


TaskOutcome = Any
"""A result, or a Failure."""


def attempt(work: Work[Task, Result], task: Task, report: ReportItem) -> TaskOutcome:
    """Run a task in its worker."""
    try:
        return work(task, report)
    except (InputError, OSError) as error:
        return Failure(_portable(error), traceback.format_exc())
    except Exception:
        return Failure(None, traceback.format_exc())


def result_of(outcome: TaskOutcome) -> Any:
    """The result of a task, in the parent. Raises the error of a Failure."""
    if isinstance(outcome, Failure):
        raise outcome.error or RuntimeError(f"a worker failed:\n{outcome.trace}")
    return outcome


def _portable(error: InputError | OSError) -> Exception:
    """The error in a form that can be pickled."""
    if isinstance(error, OSError) and error.errno is not None:  # its args leave out the file's name
        return OSError(error.errno, error.strerror or str(error), error.filename)
    return type(error)(*error.args)
