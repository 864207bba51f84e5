"""Checkpoints: files of tensors and plain values. Reading one runs no code from it; its tensors must all fit."""

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any, get_args

import torch
from compressai.models import FactorizedPrior

from relic import __version__
from relic.codec.model import NAME, Architecture, build_model
from relic.errors import InputError
from relic.files import atomic_write
from relic.options import Parts

FORMAT = "relic-checkpoint"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that a run cannot recompute. A file is a dict of these fields."""

    architecture: Architecture
    model: dict[str, torch.Tensor]
    """State dict with CompressAI's names, CDF tables included."""
    swap_init: str = "naive"
    """How the weights around ReLU started: calibrated, naive, none (nothing is swapped) or unknown. Files without this
    field are older than the calibrated swap, so theirs is naive."""
    train_scope: str = "all"
    loss_type: str = "recon"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    """Fingerprint of the training shards."""
    training: dict[str, Any] | None = None
    """Optimizer, schedule, scaler, random state, best values and progress. None: no run can resume from this file."""

    @property
    def entropy_trained(self) -> bool:
        """Whether the run trained the entropy bottleneck. Then its quantiles must be solved from the learnt density."""
        return self.loss_type == "rd" and self.train_scope in ("replaced+hyper", "all")

    def build(self, source: str = "the checkpoint") -> FactorizedPrior:
        """The model with these weights, on the CPU, in eval mode.

        Raises InputError naming `source` if the tensors do not fit the architecture.
        """
        model = build_model(self.architecture)
        load_strictly(model, self.model, source)
        return model.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file atomically: if the disk is full or the process is killed, the old file stays complete."""
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    content["architecture"] = checkpoint.architecture._asdict()
    try:
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, "relic_version": __version__, **content}, file)
    except RuntimeError as error:
        # If a write fails, torch's archive writer raises a RuntimeError whose context is the OSError.
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
        raise


def load_checkpoint(path: Path, *, flag: str = "--checkpoint") -> Checkpoint:
    """Read a checkpoint of relic. Raises InputError naming `flag` and the path for any other file."""
    content = read_tensors(path, flag=flag)
    if not is_checkpoint(content):
        raise InputError(
            f"{flag} {path}: not a checkpoint of relic (it has no `format`); --pretrained reads files of CompressAI"
        )
    return checkpoint_of(content, f"{flag} {path}")


def is_checkpoint(content: dict[str, Any]) -> bool:
    """Whether `save_checkpoint`, of any version, wrote a file with this content."""
    return content.get("format") == FORMAT


def checkpoint_of(content: dict[str, Any], source: str) -> Checkpoint:
    """Check the content of a checkpoint file. Raises InputError naming `source`."""
    if content.get("version") != VERSION:
        raise InputError(f"{source}: checkpoint version {content.get('version')}, this relic reads {VERSION}")
    names = {field.name for field in dataclasses.fields(Checkpoint)}
    values = {name: value for name, value in content.items() if name in names}
    try:
        architecture = dict(values.pop("architecture"))
        inner, latent = map(int, architecture.pop("channels"))
        described = Architecture(channels=(inner, latent), **architecture)
        if min(inner, latent) < 1 or described.replaced not in get_args(Parts):
            raise ValueError(f"architecture {described}")
        if described.replaced == "none":
            values["swap_init"] = "none"
        checkpoint = Checkpoint(architecture=described, **values)
        check_state(checkpoint.model)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: not a whole checkpoint ({error})") from error
    if described.name != NAME:
        raise InputError(f"{source}: holds a {described.name}, this relic builds {NAME}")
    return checkpoint


def read_tensors(path: Path, *, flag: str) -> dict[str, Any]:
    """Read a file without running code from it.

    Raises InputError if the file is not a dict of tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"{flag} {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise InputError(f"{flag} {path}: not a checkpoint") from error
        raise InputError(f"{flag} {path}: refused, it holds more than tensors and plain values") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{flag} {path}: not a checkpoint, or a damaged one") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{flag} {path}: not a checkpoint")
    return content


def check_state(state: object) -> None:
    """Raise ValueError unless `state` is a dict of names to tensors."""
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError("no dict of tensors")


def load_strictly(model: FactorizedPrior, state: dict[str, torch.Tensor], source: str) -> None:
    """Load `state` into `model`. Raises InputError naming `source` if a tensor is missing, unknown or of another shape.

    `model` must not be wrapped.
    """
    try:
        model.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError) as error:
        wanted = model.state_dict()
        odd = [f"{name} is missing" for name in wanted if name not in state]
        odd += [f"{name} is unknown" for name in state if name not in wanted]
        odd += [
            f"{name} has another shape" for name in state if name in wanted and state[name].shape != wanted[name].shape
        ]
        raise InputError(f"{source}: its tensors do not fit the model: {odd[0] if odd else error}") from error


def random_state() -> dict[str, Any]:
    """The state of torch's random generators. They draw the quantisation noise; nothing else in a run is random.

    Includes only the current CUDA device, which is this rank's, because a run may resume on other or fewer devices.
    """
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
