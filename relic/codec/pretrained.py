"""Load a codec: from a file of relic or CompressAI, the codec in this package, CompressAI's zoo, or random weights.

Each becomes a `Checkpoint`, and each file is read once.
"""

import hashlib
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import torch
from compressai import zoo
from compressai.models import FactorizedPrior
from compressai.models.utils import remap_old_keys
from compressai.zoo.pretrained import load_pretrained
from torch import Tensor

from relic.codec.checkpoint import Checkpoint, checkpoint_of, is_checkpoint
from relic.codec.constants import EMBEDDED
from relic.codec.entropy import refresh_tables
from relic.codec.model import Architecture, architecture_of, build_model, zoo_channels
from relic.codec.tensor_file import check_state, read_tensors
from relic.errors import InputError, before_work, naming

_STATE_KEYS = ("state_dict", "model_state_dict", "network")
"""Names of the state dict in files of CompressAI's examples, of CompressAI-Trainer, and of its `eval_model`."""
_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put before every name."""
EMBEDDED_FILE = Path(__file__).parent / "embedded" / "codec.pt"


def codec_path(name: str) -> Path:
    """The file that a command line names: `embedded` is the codec in this package, anything else is a path."""
    return EMBEDDED_FILE if name == EMBEDDED else Path(name)


def read_codec(path: Path, *, flag: str, digest: "hashlib._Hash | None" = None) -> Checkpoint:
    """Read a checkpoint of relic, or a state dict of CompressAI with its old or new key names.

    A `digest` (such as `hashlib.sha256()`) gets all bytes of the file.
    A file of CompressAI does not describe its training: `train_scope`, `loss_type` and (if layers are swapped)
    `swap_init` are then "unknown". Raises InputError naming `flag` and the path.
    """
    content = read_tensors(path, flag=flag, digest=digest)
    source = f"{flag} {path}"
    if is_checkpoint(content):
        return checkpoint_of(content, source)
    try:
        state = _compressai_state(content)
        architecture = architecture_of(state)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    return _of_compressai(architecture, state)


def _compressai_state(content: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict in a file of CompressAI's tools, with the names of its current version.

    Raises ValueError if there is none.
    """
    found = next((content[key] for key in _STATE_KEYS if isinstance(content.get(key), dict)), content)
    try:
        check_state(found)
    except ValueError as error:
        keys = ", ".join(f"{key:.40}" for key in list(content)[:8])
        raise ValueError(f"{error}; a state dict is looked for at {', '.join(_STATE_KEYS)}, found: {keys}") from None
    state: dict[str, Tensor] = {}
    for name, tensor in found.items():
        plain = name
        while plain.startswith(_WRAPPERS):
            plain = plain.partition(".")[2]
        if plain in state:
            raise ValueError(f"{plain} is there twice, with and without a prefix")
        state[plain] = tensor
    try:  # CompressAI's functions for names of its older versions
        renamed: dict[str, Tensor] = dict(remap_old_keys("entropy_bottleneck", load_pretrained(state)))
    except IndexError:  # a name that begins with entropy_bottleneck and goes on without a dot
        return state
    if len(renamed) < len(state):
        raise ValueError("a tensor is there twice, under its old and its new name")
    return renamed


def finished_model(checkpoint: Checkpoint, source: str) -> FactorizedPrior:
    """The model to evaluate or export: on the CPU, fp32, in eval mode, with CDF tables computed from its density.

    If the run trained the entropy model, the quantiles are solved again: a checkpoint from inside an epoch holds those
    of the epoch before. Otherwise they are kept, and after --rounded_epochs too. Raises InputError naming `source` if
    the weights do not fit, are not finite, or give no tables.
    """
    model = checkpoint.build(source)
    with naming(source):
        refresh_tables(model, solve=checkpoint.solves_quantiles)
    return model


def load_codec(source: str, *, quality: int, channels: tuple[int, int] | None) -> Checkpoint:
    """The codec that a training run starts from.

    `source`: `zoo` (CompressAI's MSE model of `quality`, downloaded once), `embedded`, `none` (random weights, with
    `channels` or those of `quality`), or a file of relic or CompressAI. Raises InputError that says what to do; it is a
    RefusedError for a file.
    """
    if source == "none":
        architecture = Architecture(channels or zoo_channels(quality), "none")
        return _of_compressai(architecture, build_model(architecture).state_dict())
    if source == "zoo":
        codec = _of_compressai(Architecture(zoo_channels(quality), "none"), _download(quality).state_dict())
    else:
        with before_work():
            codec = read_codec(codec_path(source), flag="--pretrained")
    if channels and channels != codec.architecture.channels:
        wanted, found = (",".join(map(str, pair)) for pair in (channels, codec.architecture.channels))
        raise InputError(f"--channels {wanted}: --pretrained {source} has {found}; leave --channels out")
    return codec


def _of_compressai(architecture: Architecture, state: dict[str, Tensor]) -> Checkpoint:
    began = "none" if architecture.replaced == "none" else "unknown"
    return Checkpoint(architecture, state, swap_init=began, train_scope="unknown", loss_type="unknown")


def _download(quality: int) -> FactorizedPrior:
    try:
        return zoo.bmshj2018_factorized(quality, metric="mse", pretrained=True, progress=True)
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise InputError(
            f"--pretrained zoo: CompressAI's weights could not be downloaded ({error}); "
            "use --pretrained embedded, --pretrained FILE or --pretrained none"
        ) from error
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"--pretrained zoo: the downloaded file is damaged; remove it from {torch.hub.get_dir()}/checkpoints and "
            "start again"
        ) from error
