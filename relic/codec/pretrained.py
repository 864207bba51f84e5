"""Where a run's weights come from: CompressAI's zoo, the codec that ships with relic, nothing, or a file."""

import urllib.error
from pathlib import Path

from compressai import zoo
from compressai.models import FactorizedPrior
from compressai.zoo.pretrained import load_pretrained

from relic.codec.checkpoint import FORMAT, load_checkpoint, load_strictly, read_tensors
from relic.codec.model import Architecture, Parts, architecture_of, build_model, replace_gdn_with_relu, zoo_channels
from relic.errors import InputError

_TABLES = ("_offset", "_quantized_cdf", "_cdf_length")
EMBEDDED = Path(__file__).parent / "embedded" / "codec.pt"


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
        path = EMBEDDED if source == "embedded" else Path(source)
        model, architecture = load_file(path, flag="--pretrained")
    if channels and channels != architecture.channels:
        wanted, found = (",".join(map(str, pair)) for pair in (channels, architecture.channels))
        raise InputError(f"--channels {wanted}: --pretrained {source} has {found}; leave --channels out")
    return model, architecture


def load_file(path: Path, *, flag: str) -> tuple[FactorizedPrior, Architecture]:
    """A checkpoint of ours, or a state dict of CompressAI's under its old or new key names."""
    content = read_tensors(path, flag=flag)
    if content.get("format") == FORMAT:
        checkpoint = load_checkpoint(path, flag=flag)
        return checkpoint.build(), checkpoint.architecture
    # CompressAI's renaming takes DataParallel's prefix away and knows the released files' names.
    state = load_pretrained(content.get("state_dict", content))
    try:
        architecture = architecture_of(state)
    except InputError as error:
        raise InputError(f"{flag} {path}: {error}") from None
    model = build_model(architecture)
    # Tables that a file lacks stay empty: they are made fresh whenever they are needed.
    tables = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(_TABLES)}
    load_strictly(model, tables | state, f"{flag} {path}")
    return model, architecture


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
