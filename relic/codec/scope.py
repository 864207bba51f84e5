"""Select the parameters that a run trains."""

from compressai.models import FactorizedPrior

from relic.codec.model import transforms_of
from relic.errors import InputError
from relic.options import Parts, Scope


def set_trainable_parts(model: FactorizedPrior, parts: Parts, scope: Scope) -> list[str]:
    """Set `requires_grad` on every parameter and return the names of the trainable ones.

    `replaced`: all parameters of the transforms that `parts` names; `replaced+hyper`: also the entropy bottleneck;
    `all`: everything. The quantiles of the entropy bottleneck are never trained: they are a function of the learnt
    density (`relic.codec.entropy`). Raises InputError if nothing would be trained.
    """
    if parts == "none" and scope != "all":
        raise InputError(
            f"--train_scope {scope}: with --replace_parts none nothing was replaced; use --train_scope all"
        )
    prefixes = tuple(f"{name}." for name in transforms_of(model, parts))
    if scope == "replaced+hyper":
        prefixes += ("entropy_bottleneck.",)
    elif scope == "all":
        prefixes = ("",)
    trainable = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(prefixes) and not name.endswith(".quantiles")
        if parameter.requires_grad:
            trainable.append(name)
    return trainable


def freeze_unreachable(model: FactorizedPrior, loss_type: str) -> list[str]:
    """Freeze the parameters that get no gradient from the loss, and return their names.

    These are the entropy bottleneck's under `recon`, which has no rate term. If they were not frozen,
    DistributedDataParallel would wait for gradients that are never computed.
    """
    frozen = []
    if loss_type == "recon":
        for name, parameter in model.entropy_bottleneck.named_parameters(prefix="entropy_bottleneck"):
            if parameter.requires_grad:
                parameter.requires_grad = False
                frozen.append(name)
    return frozen
