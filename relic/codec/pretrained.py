"""Load a codec: from a file of relic or CompressAI, the codec in this package, CompressAI's zoo, or random weights.

Each becomes a `Checkpoint`, and each file is read once.
"""

import urllib.error
from pathlib import Path

import torch
from compressai import zoo
from compressai.models import FactorizedPrior
from compressai.zoo.pretrained import load_pretrained

from relic.codec.checkpoint import Checkpoint, check_state, checkpoint_of, is_checkpoint, read_tensors
from relic.codec.constants import EMBEDDED
from relic.codec.entropy import refresh_tables
from relic.codec.model import Architecture, architecture_of, build_model, zoo_channels
from relic.errors import InputError

_TABLES = ("_offset", "_quantized_cdf", "_cdf_length")
EMBEDDED_FILE = Path(__file__).parent / "embedded" / "codec.pt"


def codec_path(name: str) -> Path:
    """The file that a command line names: `embedded` is the codec in this package, anything else is a path."""
    return EMBEDDED_FILE if name == EMBEDDED else Path(name)


def read_codec(path: Path, *, flag: str) -> Checkpoint:
    """Read a checkpoint of relic, or a state dict of CompressAI with its old or new key names.

    A file of CompressAI does not describe its training: `train_scope`, `loss_type` and (if layers are swapped)
    `swap_init` are then "unknown". Raises InputError naming `flag` and the path.
    """
    content = read_tensors(path, flag=flag)
    if is_checkpoint(content):
        return checkpoint_of(content, f"{flag} {path}")
    # CompressAI's function removes DataParallel's prefix and renames the keys of released files.
    state = content.get("state_dict", content)
    try:
        check_state(state)
        state = load_pretrained(state)
        architecture = architecture_of(state)
    except ValueError as error:
        raise InputError(f"{flag} {path}: {error}") from None
    # Tables that are not in the file stay empty; they are computed before each use.
    tables = {f"entropy_bottleneck.{name}": torch.empty(0, dtype=torch.int32) for name in _TABLES}
    return _of_compressai(architecture, tables | state)


def finished_model(checkpoint: Checkpoint, source: str) -> FactorizedPrior:
    """The model to evaluate or export: on the CPU, fp32, in eval mode, with CDF tables computed from its density.

    If the run trained the entropy model, the quantiles are solved again: a checkpoint from inside an epoch holds those
    of the epoch before. Otherwise they are kept. Raises InputError naming `source` if a tensor is not finite.
    """
    model = checkpoint.build(source).float()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {name} is not finite: its training diverged; use an earlier checkpoint")
    refresh_tables(model, solve=checkpoint.entropy_trained)
    return model


def load_codec(source: str, *, quality: int, channels: tuple[int, int] | None) -> Checkpoint:
    """The codec that a training run starts from.

    `source`: `zoo` (CompressAI's MSE model of `quality`, downloaded once), `embedded`, `none` (random weights, with
    `channels` or those of `quality`), or a file of relic or CompressAI. Raises InputError that says what to do.
    """
    if source == "none":
        architecture = Architecture(channels or zoo_channels(quality), "none")
        return _of_compressai(architecture, build_model(architecture).state_dict())
    if source == "zoo":
        codec = _of_compressai(Architecture(zoo_channels(quality), "none"), _download(quality).state_dict())
    else:
        codec = read_codec(codec_path(source), flag="--pretrained")
    if channels and channels != codec.architecture.channels:
        wanted, found = (",".join(map(str, pair)) for pair in (channels, codec.architecture.channels))
        raise InputError(f"--channels {wanted}: --pretrained {source} has {found}; leave --channels out")
    return codec


def _of_compressai(architecture: Architecture, state: dict[str, torch.Tensor]) -> Checkpoint:
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
