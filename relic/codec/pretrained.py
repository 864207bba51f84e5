"""Where a run's weights come from: CompressAI's zoo, the codec that ships with relic, nothing, or a file."""

import urllib.error
from pathlib import Path
from typing import NamedTuple

import torch
from compressai import zoo
from compressai.models import FactorizedPrior
from compressai.zoo.pretrained import load_pretrained

from relic.codec.checkpoint import FORMAT, Checkpoint, check_state, load_checkpoint, load_strictly, read_tensors
from relic.codec.constants import EMBEDDED
from relic.codec.model import Architecture, architecture_of, build_model, replace_gdn_with_relu, zoo_channels
from relic.codec.quantiles import refresh_tables
from relic.errors import InputError
from relic.options import Parts

_TABLES = ("_offset", "_quantized_cdf", "_cdf_length")
EMBEDDED_FILE = Path(__file__).parent / "embedded" / "codec.pt"


def load_codec(source: str, *, quality: int, channels: tuple[int, int] | None) -> tuple[FactorizedPrior, Architecture]:
    """The model to start from and its architecture, on the CPU.

    `source`: `zoo` (CompressAI's MSE model of `quality`, downloaded once), `embedded`, `none` (random weights,
    `channels` or those of `quality`), or a file of ours or CompressAI's. Raises InputError with the way out.
    """
    if source == "none":
        architecture = Architecture(channels or zoo_channels(quality), "none")
        return build_model(architecture), architecture
    if source == "zoo":
        model, architecture = _download(quality), Architecture(zoo_channels(quality), "none")
    else:
        path = EMBEDDED_FILE if source == EMBEDDED else Path(source)
        model, architecture = load_file(path, flag="--pretrained")
    if channels and channels != architecture.channels:
        wanted, found = (",".join(map(str, pair)) for pair in (channels, architecture.channels))
        raise InputError(f"--channels {wanted}: --pretrained {source} has {found}; leave --channels out")
    return model, architecture


class OpenedCodec(NamedTuple):
    """A finished codec, to be judged or exported."""

    path: Path
    model: FactorizedPrior
    """On the CPU, fp32, in eval mode; its CDF tables were made from its density just now."""
    architecture: Architecture
    checkpoint: Checkpoint | None
    """What a file of ours says of itself; None for CompressAI's."""


def open_codec(name: str, *, flag: str) -> OpenedCodec:
    """Open `embedded` or a file of ours or CompressAI's. Raises InputError naming `flag` and the file.

    The quantiles are solved where the run trained the entropy model: a checkpoint from inside an epoch holds those of
    the epoch before. Any other keeps its own.
    """
    path = EMBEDDED_FILE if name == EMBEDDED else Path(name)
    checkpoint = None
    if read_tensors(path, flag=flag).get("format") == FORMAT:
        checkpoint = load_checkpoint(path, flag=flag)
    model, architecture = load_file(path, flag=flag)
    for tensor_name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{flag} {path}: {tensor_name} is not finite: its training diverged; take an earlier one")
    model = model.float().eval()
    refresh_tables(model, solve=checkpoint is not None and checkpoint.entropy_trained)
    return OpenedCodec(path, model, architecture, checkpoint)


def load_file(path: Path, *, flag: str) -> tuple[FactorizedPrior, Architecture]:
    """A checkpoint of ours, or a state dict of CompressAI's under its old or new key names."""
    content = read_tensors(path, flag=flag)
    if content.get("format") == FORMAT:
        checkpoint = load_checkpoint(path, flag=flag)
        model = build_model(checkpoint.architecture)
        load_strictly(model, checkpoint.model, f"{flag} {path}")
        return model, checkpoint.architecture
    # CompressAI's renaming takes DataParallel's prefix away and knows the released files' names.
    state = content.get("state_dict", content)
    try:
        check_state(state)
        state = load_pretrained(state)
        architecture = architecture_of(state)
    except ValueError as error:
        raise InputError(f"{flag} {path}: {error}") from None
    model = build_model(architecture)
    # Tables that a file lacks stay empty: they are made fresh whenever they are needed.
    tables = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(_TABLES)}
    load_strictly(model, tables | state, f"{flag} {path}")
    return model, architecture


def recorded_swap_init(source: str) -> str:
    """How the swapped layers of a codec that `load_codec` knows began, as far as its file says."""
    path = EMBEDDED_FILE if source == EMBEDDED else Path(source)
    ours = path.is_file() and read_tensors(path, flag="--pretrained").get("format") == FORMAT
    return load_checkpoint(path, flag="--pretrained").swap_init if ours else "unknown"


def swap(model: FactorizedPrior, architecture: Architecture, parts: Parts) -> Architecture:
    """Replace GDN by ReLU in `parts` and return what the model now is."""
    replace_gdn_with_relu(model, parts)
    return architecture_of(model.state_dict())._replace(channels=architecture.channels)


def _download(quality: int) -> FactorizedPrior:
    try:
        return zoo.bmshj2018_factorized(quality, metric="mse", pretrained=True, progress=True)
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise InputError(
            f"--pretrained zoo: CompressAI's weights could not be downloaded ({error}); "
            "use --pretrained embedded, --pretrained FILE or --pretrained none"
        ) from error
