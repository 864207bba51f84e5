"""Where a codec comes from: a file of relic's or CompressAI's, the codec in the package, CompressAI's zoo, or nothing.

All of them become a `Checkpoint`, and each file is read once.
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
    """The file that a command line names: `embedded` is the codec in the package, anything else a path."""
    return EMBEDDED_FILE if name == EMBEDDED else Path(name)


def read_codec(path: Path, *, flag: str) -> Checkpoint:
    """Read a checkpoint of relic's, or a state dict of CompressAI's under its old or new key names.

    CompressAI's says nothing of its training: `swap_init` (where layers are swapped), `train_scope` and `loss_type` are
    then "unknown". Raises InputError naming `flag` and the path.
    """
    content = read_tensors(path, flag=flag)
    if is_checkpoint(content):
        return checkpoint_of(content, f"{flag} {path}")
    # CompressAI's renaming takes DataParallel's prefix away and knows the released files' names.
    state = content.get("state_dict", content)
    try:
        check_state(state)
        state = load_pretrained(state)
        architecture = architecture_of(state)
    except ValueError as error:
        raise InputError(f"{flag} {path}: {error}") from None
    # Tables that a file lacks stay empty: they are computed whenever they are needed.
    tables = {f"entropy_bottleneck.{name}": torch.empty(0, dtype=torch.int32) for name in _TABLES}
    return _of_compressai(architecture, tables | state)


def finished_model(checkpoint: Checkpoint, source: str) -> FactorizedPrior:
    """The model to evaluate or export: on the CPU, fp32, in eval mode, its CDF tables computed from its density.

    The quantiles are solved where the run trained the entropy model: a checkpoint from inside an epoch holds those of
    the epoch before. Any other keeps its own. Raises InputError naming `source`.
    """
    model = checkpoint.build(source).float()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {name} is not finite: its training diverged; take an earlier one")
    refresh_tables(model, solve=checkpoint.entropy_trained)
    return model


def load_codec(source: str, *, quality: int, channels: tuple[int, int] | None) -> Checkpoint:
    """The codec that a training run starts from.

    `source`: `zoo` (CompressAI's MSE model of `quality`, downloaded once), `embedded`, `none` (random weights,
    `channels` or those of `quality`), or a file of relic's or CompressAI's. Raises InputError with the way out.
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
