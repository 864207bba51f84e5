"""What runs tasks. `prep/pool.py` is the engine of one machine."""

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


def portable(error: InputError | OSError) -> Exception:
    """The error in a form that can be pickled."""
    if isinstance(error, OSError):  # its args leave out the file's name
        return OSError(error.errno, error.strerror or str(error), error.filename)
    return type(error)(*error.args)
