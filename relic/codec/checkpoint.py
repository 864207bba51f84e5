"""Checkpoints: files of tensors and plain values. Reading one runs no code from it; its tensors must all fit."""

import copy
import dataclasses
from pathlib import Path
from typing import Any, get_args

import torch
from compressai.models import FactorizedPrior

from relic import __version__
from relic.bitstream.contexts import Contexts
from relic.codec.constants import MAX_CHANNELS
from relic.codec.model import NAME, TRANSFORMS, Architecture, build_model
from relic.codec.tensor_file import check_state, read_tensors
from relic.codec.weights import check_fit, load_weights
from relic.errors import InputError
from relic.files import atomic_write
from relic.options import Parts, Upsample

FORMAT = "relic-checkpoint"
VERSION = 1
_MAX_TEXT = 200
_RELUS = {
    parts: [f"{transform}.{place}" for transform in transforms for place in (1, 3, 5)]
    for parts, transforms in TRANSFORMS.items()
}
_STEPS = 1e-30, 1e30
"""Steps of activations beyond these, or products with a step of weights, are 0 or infinite in float32."""
_MAX_VALUE_TEXT = 1 << 16
_MAX_ENTRIES = 1000


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that a run cannot recompute. A file is a dict of these fields."""

    architecture: Architecture
    model: dict[str, torch.Tensor]
    """State dict with CompressAI's names, CDF tables included. The parameters count. CompressAI's constants are those
    of the code, and the tables are computed again before each use."""
    swap_init: str = "naive"
    """How the weights around ReLU started: calibrated, naive, none (nothing is swapped) or unknown. Files without this
    field are older than the calibrated swap, so theirs is naive."""
    train_scope: str = "all"
    loss_type: str = "recon"
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    """Fingerprint of the training shards."""
    quantization: dict[str, Any] | None = None
    """Of quantization-aware training: `upsample`, the form of the decoder, and `activation_steps`, the step of each
    ReLU's 8 bits. None: trained in float."""
    contexts: Contexts | None = None
    """Context tables, counted on training crops that were coded with these weights. A file holds them as a dict of
    tensors."""
    training: dict[str, Any] | None = None
    """Optimizer, schedule, scaler, random state, best values and progress. None: no run can resume from this file."""

    @property
    def solves_quantiles(self) -> bool:
        """Whether the quantiles must be solved from the density, because the run trained the entropy bottleneck.

        A run with --rounded_epochs keeps the medians that its decoder was trained with.
        """
        trained = self.loss_type == "rd" and self.train_scope in ("replaced+hyper", "all")
        return trained and not self.config.get("rounded_epochs")

    def build(self, source: str = "the checkpoint") -> FactorizedPrior:
        """The model with these weights, on the CPU, in fp32, in eval mode.

        Raises InputError naming `source` if the tensors do not fit the architecture, before memory is taken, or if the
        codec cannot work: a weight is not finite, or a quantile is out of range.
        """
        check_fit(self.model, self.architecture, source)
        model = build_model(self.architecture)
        load_weights(model, self.model, source)
        return model.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file atomically: if the disk is full or the process is killed, the old file stays complete.

    Its tensors are on the CPU, so that `torch.load` reads it on a machine without CUDA too.
    """
    content = {field.name: _on_cpu(getattr(checkpoint, field.name)) for field in dataclasses.fields(checkpoint)}
    content["architecture"] = checkpoint.architecture._asdict()
    if checkpoint.contexts is not None:
        stored = checkpoint.contexts.stored()
        content["contexts"] = {name: torch.from_numpy(array.astype("int32")) for name, array in stored.items()}
    try:
        with atomic_write(path) as file:
            torch.save({"format": FORMAT, "version": VERSION, "relic_version": __version__, **content}, file)
    except RuntimeError as error:
        # If a write fails, torch's archive writer raises a RuntimeError whose context is the OSError.
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
        raise


def _on_cpu(value: Any) -> Any:
    """The same value with all its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = copy.copy(value)
        moved.update((key, _on_cpu(each)) for key, each in value.items())
        return moved
    return [_on_cpu(each) for each in value] if isinstance(value, list) else value


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
    found = content.get("format")
    return isinstance(found, str) and found == FORMAT


def checkpoint_of(content: dict[str, Any], source: str) -> Checkpoint:
    """Check the content of a checkpoint file. Raises InputError naming `source`."""
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        raise InputError(f"{source}: checkpoint version {shown(version)}, this relic reads {VERSION}")
    names = {field.name for field in dataclasses.fields(Checkpoint)}
    values = {name: value for name, value in content.items() if name in names}
    try:
        architecture = dict(values.pop("architecture"))
        inner, latent = architecture.pop("channels")
        described = Architecture(channels=(inner, latent), **architecture)
        if not all(type(count) is int and 1 <= count <= MAX_CHANNELS for count in (inner, latent)):
            raise ValueError(f"channels {shown(inner)},{shown(latent)}; two whole numbers from 1 to {MAX_CHANNELS}")
        if not isinstance(described.replaced, str) or described.replaced not in get_args(Parts):
            raise ValueError(f"architecture: replaced {shown(described.replaced)}")
        if not isinstance(described.name, str):
            raise ValueError(f"architecture: name {shown(described.name)}")
        _check_fields(values)
        _check_quantization(values.get("quantization"), described.replaced)
        if described.replaced == "none":
            values["swap_init"] = "none"
        values["contexts"] = _contexts(values.get("contexts"), latent)
        checkpoint = Checkpoint(architecture=described, **values)
        check_state(checkpoint.model)
    except Exception as error:  # a file may hold any type in any place
        raise InputError(f"{source}: not a whole checkpoint ({error}); get it again, or name another") from error
    if described.name != NAME:
        raise InputError(f"{source}: holds a {described.name!r:.80}, this relic builds {NAME}")
    return checkpoint


def _contexts(value: Any, latent: int) -> Contexts | None:
    """The context tables of a file. Raises an error of any type unless they can code `latent` channels."""
    if value is None:
        return None
    contexts = Contexts(**{name: tensor.numpy() for name, tensor in value.items()})
    if contexts.num_channels != latent:
        raise ValueError(f"contexts for {contexts.num_channels} channels instead of {latent}")
    return contexts


def _check_fields(values: dict[str, Any]) -> None:
    """Raise ValueError unless the fields that describe a checkpoint are plain: they go into reports and export.json."""
    for name in ("swap_init", "train_scope", "loss_type", "fingerprint"):
        text = values.get(name, "")
        if not isinstance(text, str) or len(text) > _MAX_TEXT or not text.isprintable():
            raise ValueError(f"{name} is no short text")
    for name in ("config", "metrics"):
        entries = values.get(name, {})
        if type(entries) is not dict or len(entries) > _MAX_ENTRIES:
            raise ValueError(f"{name} is no dict of values")
        if not all(isinstance(key, str) for key in entries):
            raise ValueError(f"{name} has a name that is no text")
    # Reports show the flags. One that is no text or number, as a later version may write, is left out.
    values["config"] = {key: value for key, value in values.get("config", {}).items() if is_plain(value)}
    for key, value in values.get("metrics", {}).items():
        if not is_plain(value) or isinstance(value, bool | str):
            raise ValueError(f"metrics holds a value that is no number: {key:.40}")
    if not isinstance(values.get("training"), dict | None):
        raise ValueError("training is no dict")


def _check_quantization(value: Any, replaced: Parts) -> None:
    if value is None:
        return
    if type(value) is not dict or set(value) != {"upsample", "activation_steps"}:
        raise ValueError("quantization does not hold upsample and activation_steps")
    if value["upsample"] not in get_args(Upsample):
        raise ValueError(f"quantization: upsample {shown(value['upsample'])}")
    steps = value["activation_steps"]
    if type(steps) is not dict or list(steps) != _RELUS[replaced]:
        raise ValueError(f"quantization: activation_steps is no dict of {', '.join(_RELUS[replaced])}")
    for name, step in steps.items():
        if type(step) is not float or not _STEPS[0] < step < _STEPS[1]:
            raise ValueError(f"quantization: the step of {name} is {shown(step)}")


def is_plain(value: object) -> bool:
    """Whether `value` is a text, a number of 64 bits, true, false or null, of limited length."""
    if isinstance(value, str):
        return len(value) <= _MAX_VALUE_TEXT
    return type(value) in (float, bool, type(None)) or (type(value) is int and abs(value) < 1 << 63)


def shown(value: object) -> str:
    """A value of a file as text for a message: short, whatever it is."""
    return f"{value!r:.40}" if is_plain(value) else type(value).__name__


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's random generators. They draw the quantisation noise; nothing else in a run is random.

    Includes only `device`, which is this rank's, because a run may resume on other or fewer devices. CUDA starts if it
    is asked for a state, so a run on a CPU does not ask.
    """
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the generators of a run on `device` to what `random_state` returned, there or on another device."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
