"""Which operators devices run, as data: one rule per operator, each with its source.

`supported`: the device's own documents list the operator with the node's attributes. `host`: the documents rule it out,
so the node would run on the CPU and not on the NPU. A node that no rule covers is `unknown`. Toolchains change: the
sources name the versions that were read.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from relic.options import Upsample

Status = Literal["supported", "host", "unknown"]

SOURCES = {
    "DRP-AI models": "Renesas DRP-AI TVM v2.7.0, docs/model_list/Model_List_V2H.md",
    "DRP-AI exclude": "Renesas DRP-AI TVM v2.7.0, tutorials/exclude_operator/exclude_operator.csv",
    "DRP-AI how-to": "Renesas DRP-AI TVM v2.7.0, QAT/PyTorch_sample/qat_retrain.py and docs/model_list/how_to_convert",
    "RKNN list": "RKNN-Toolkit2 v2.1.0, doc/RKNNToolKit2_OP_Support-v2.1.0.md",
    "Vela list": "Arm Ethos-U Vela 3.6.1, SUPPORTED_OPS.md (of TFLite operators)",
    "TIDL list": "TI edgeai-tidl-tools, docs/supported_ops_rts_versions.md (ONNX 1.14, opset 21)",
    "ExecuTorch": "ExecuTorch, Arm backend, pull request 14684; also Apache TVM, microNPU, pull request 9855",
    "GDN in INT8": "arXiv 2511.17135; onnxruntime 1.32, quantization/registry.py",
}
"""Short names, as the printed tables have them, and the documents."""

GDN_REASON = (
    "GDN divides by sqrt(beta + gamma x^2): quantizers have no 8-bit form of Sqrt and Div, Vela lists neither, and "
    "naive INT8 of a GDN codec costs 30 % BD-rate"
)

Conditions = Mapping[str, Sequence[int | str]]
"""Attribute (see `lint.attributes`) -> the values that a rule covers."""
_ANY: Conditions = MappingProxyType({})


class Rule(NamedTuple):
    """What a device does with nodes of `operator` that meet the conditions."""

    operator: str
    status: Status
    source: str
    """A key of SOURCES."""
    why: str = ""
    only: Conditions = _ANY
    """Every attribute named here must have one of its values. Empty: any node of the operator."""


class Target(NamedTuple):
    """A device family. Of its rules the first that covers a node counts."""

    rules: tuple[Rule, ...]
    opsets: range
    """ONNX opsets that its toolchain reads, by the same documents (DRP-AI: the how-to)."""
    upsample: Upsample
    """The --upsample that its rules allow; named in the message where another one is refused."""


_DRPAI_CONV: Conditions = {"group": (1,), "stride": (1, 2), "kernel": tuple(range(1, 8))}
_DRPAI = Target(
    rules=(
        Rule("Conv", "supported", "DRP-AI models", "ResNet, YOLO", _DRPAI_CONV),
        Rule("Relu", "supported", "DRP-AI models", "ResNet"),
        Rule("ConvTranspose", "supported", "DRP-AI models", "YOLOv6 upsamples so", {"kernel": (2,), "stride": (2,)}),
        Rule("ConvTranspose", "unknown", "DRP-AI models", "only 2x2 with stride 2 occurs in the list"),
        Rule("Clip", "unknown", "DRP-AI models", "only Clip(0, 6) of MobileNet occurs in the list"),
        Rule("Div", "host", "DRP-AI exclude", "kept out of quantization"),
        Rule("Sqrt", "host", "GDN in INT8", "no 8-bit form"),
        Rule("Round", "host", "DRP-AI models", "occurs in no model of the list; rounding belongs to entropy coding"),
    ),
    opsets=range(11, 15),
    upsample="subpixel-deconv2",
)

_RKNN = Target(
    rules=(
        *(Rule(name, "supported", "RKNN list") for name in ("Conv", "Relu", "Clip", "DepthToSpace", "Add", "Sub")),
        Rule("ConvTranspose", "supported", "RKNN list", "limits of its shape are in a document that is not public"),
        *(Rule(name, "supported", "RKNN list") for name in ("Mul", "Div", "Sqrt")),
        Rule("Round", "host", "RKNN list", "not supported"),
    ),
    opsets=range(11, 20),
    upsample="deconv5",
)

_VELA_DECONV: Conditions = {"stride": (2,), "kernel": tuple(range(1, 65)), "output_padding": (0,), "padding": ("same",)}
_ETHOS_U = Target(
    rules=(
        Rule("Conv", "supported", "Vela list", "CONV_2D", {"stride": (1, 2, 3, 4), "kernel": tuple(range(1, 65))}),
        Rule("Relu", "supported", "Vela list", "RELU"),
        Rule("ConvTranspose", "supported", "Vela list", "TRANSPOSE_CONV, SAME, stride 2", _VELA_DECONV),
        Rule("ConvTranspose", "host", "ExecuTorch", "output padding is refused", {"output_padding": (1,)}),
        Rule("Clip", "unknown", "Vela list", "RELU, RELU6 and MINIMUM are listed; which one Clip becomes is not"),
        Rule("DepthToSpace", "host", "Vela list", "DEPTH_TO_SPACE is not listed"),
        Rule("Mul", "supported", "Vela list", "MUL"),
        Rule("Add", "supported", "Vela list", "ADD"),
        Rule("Sub", "supported", "Vela list", "SUB"),
        *(Rule(name, "host", "Vela list", "not listed") for name in ("Div", "Sqrt", "Round")),
    ),
    opsets=range(11, 21),
    upsample="deconv6",
)

_TIDL = Target(
    rules=(
        Rule("Conv", "supported", "TIDL list", "", {"stride": (1,)}),
        Rule("Conv", "supported", "TIDL list", "stride 2: kernel to 7", {"stride": (2,), "kernel": tuple(range(1, 8))}),
        Rule("Relu", "supported", "TIDL list"),
        Rule("Clip", "supported", "TIDL list", "min <= 0 < max", {"range": ("0..1", "0..6")}),
        Rule("ConvTranspose", "supported", "TIDL list", "", {"stride": (2,), "kernel": (2, 3, 4)}),
        Rule("ConvTranspose", "host", "TIDL list", "only 4x4, 3x3 and 2x2 kernels with stride 2"),
        Rule("DepthToSpace", "supported", "TIDL list", "DCR and CRD", {"mode": ("DCR", "CRD")}),
        *(Rule(name, "supported", "TIDL list") for name in ("Add", "Sub", "Mul", "Div", "Sqrt")),
        Rule("Round", "host", "TIDL list", "not listed"),
    ),
    opsets=range(11, 22),
    upsample="subpixel",
)

TARGETS: dict[str, Target] = {"drpai": _DRPAI, "rknn": _RKNN, "ethos-u": _ETHOS_U, "tidl": _TIDL}
"""`generic` has no rules: any ONNX runtime runs the files."""
