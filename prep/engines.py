"""The engine that the flags choose."""

import contextlib
import importlib.util
from collections.abc import Iterator

from prep.config import PrepConfig
from prep.engine import Engine
from prep.pool import local_engine
from relic.errors import InputError
from relic.machine import available_cores


def check_engine(config: PrepConfig) -> None:
    """Raise InputError if a package is missing that --engine needs."""
    if config.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise InputError("--engine ray: ray is not installed; pip install -r requirements-cluster.txt")


@contextlib.contextmanager
def engine_of(config: PrepConfig) -> Iterator[Engine]:
    """The engine of --engine, connected inside the block."""
    if config.engine == "local":
        yield local_engine(config.workers or available_cores())
        return
    from prep.cluster import ray_engine

    with ray_engine(config.ray_address, config.workers) as engine:
        yield engine
