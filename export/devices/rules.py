"""Which operators devices run, as data: one rule per operator, each with its source.

`supported`: the device's compiler placed such nodes on the NPU. The compilers of DRP-AI and TIDL were not run; there,
documents list them. `host`: the node would run on the CPU and not on the NPU. `fails`: the compiler refuses the part,
or computes it wrongly. A node that no rule covers is `unknown`. Toolchains change: the sources name the versions.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from relic.options import Upsample

Status = Literal["supported", "host", "fails", "unknown"]

SEEN = {
    "RKNN 2.5.0": "RKNN-Toolkit2 2.5.0, compiled for rk3588 and rk3576",
    "Vela 5.2.0": "Arm Ethos-U Vela 5.2.0, relic's .tflite files compiled for U55, U65 and U85",
    "QNN 2.7.0": "onnxruntime-qnn 2.7.0, compiled for the HTP and run in its simulator",
    "OpenVINO 2026.4.1": "OpenVINO 2026.4.1, compiled and run by the plugin for CPUs",
    "IMX500 3.19.2": "Sony imx500-converter 3.19.2 with MCT 2.5.1, compiled from the torch parts",
    "tpu-mlir 1.30.2": "Sophgo tpu-mlir 1.30.2, compiled for bm1684x and cv181x",
}
"""What compilers did with relic's files. Short names, as the printed tables have them, and the compilers."""
READ = {
    "DRP-AI models": "Renesas DRP-AI TVM v2.7.0, docs/model_list/Model_List_V2H.md",
    "DRP-AI exclude": "Renesas DRP-AI TVM v2.7.0, tutorials/exclude_operator/exclude_operator.csv",
    "DRP-AI how-to": "Renesas DRP-AI TVM v2.7.0, QAT/PyTorch_sample/qat_retrain.py and docs/model_list/how_to_convert",
    "RKNN list": "RKNN-Toolkit2 v2.1.0, doc/RKNNToolKit2_OP_Support-v2.1.0.md",
    "Vela list": "Arm Ethos-U Vela 5.2.0, --supported-ops-report",
    "TIDL list": "TI edgeai-tidl-tools, docs/supported_ops_rts_versions.md (ONNX 1.14, opset 21)",
    "GDN in INT8": "arXiv 2511.17135; onnxruntime 1.32, quantization/registry.py",
}
"""What documents say. No compiler was run."""
SOURCES = {name: f"seen: {text}" for name, text in SEEN.items()} | {
    name: f"read: {text}" for name, text in READ.items()
}

Conditions = Mapping[str, Sequence[int | str]]
"""Attribute (see `lint.attributes`) -> the values that a rule covers."""
_ANY: Conditions = MappingProxyType({})
_MANY = 1 << 20
"""More channels than any layer has."""


class Rule(NamedTuple):
    """What a device does with nodes of `operator` that meet the conditions."""

    operator: str
    status: Status
    source: str
    """A key of SOURCES."""
    why: str = ""
    only: Conditions = _ANY
    """Every attribute named here must have one of its values. Empty: any node of the operator."""


class Gdn(NamedTuple):
    """What a device does with a part that holds GDN."""

    status: Status
    source: str
    """A key of SOURCES."""
    why: str


class Target(NamedTuple):
    """A device family. Of its rules the first that covers a node counts."""

    rules: tuple[Rule, ...]
    opsets: range
    """ONNX opsets that its toolchain reads, by the same documents (DRP-AI: the how-to)."""
    upsample: Upsample
    """The --upsample that is fastest of those that compile; named in the message where another one is refused."""
    gdn: Gdn


def _supported(source: str, *operators: str, why: str = "") -> tuple[Rule, ...]:
    return tuple(Rule(name, "supported", source, why) for name in operators)


_READ_GDN = Gdn(
    "fails",
    "GDN in INT8",
    "GDN divides by sqrt(beta + gamma x^2): quantizers have no 8-bit form of Sqrt and Div, and naive INT8 of a GDN "
    "codec costs 30 % BD-rate",
)

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
    gdn=_READ_GDN,
)

_RKNN_SPLIT = "rk3588 splits the input channels of a float layer and forgets output_padding"
_RKNN = Target(
    rules=(
        *_supported("RKNN 2.5.0", "Conv", "Relu", "Clip", "DepthToSpace", "Mul"),
        *_supported("RKNN list", "Add", "Sub"),
        Rule("ConvTranspose", "supported", "RKNN 2.5.0", "", {"output_padding": (0,)}),
        Rule("ConvTranspose", "supported", "RKNN 2.5.0", "to 48 channels", {"inputs": range(1, 49)}),
        Rule(
            "ConvTranspose",
            "fails",
            "RKNN 2.5.0",
            _RKNN_SPLIT,
            {"inputs": range(64, _MANY), "precision": ("float32",)},
        ),
        Rule(
            "ConvTranspose",
            "unknown",
            "RKNN 2.5.0",
            "the QDQ file compiles; RKNN's own quantizer refuses 128 channels",
            {"inputs": range(64, _MANY)},
        ),
        Rule("ConvTranspose", "unknown", "RKNN 2.5.0", "48 channels compile and 64 do not, on rk3588"),
        *_supported("RKNN 2.5.0", "Div", "Sqrt", why="in fp16, in INT8 files too"),
        Rule("Round", "host", "RKNN 2.5.0", "runs on the CPU"),
    ),
    opsets=range(11, 20),
    upsample="subpixel",
    gdn=Gdn(
        "supported",
        "RKNN 2.5.0",
        "GDN runs on the NPU in fp16, in INT8 files too; RKNN's own quantizer leaves 9 operators to the CPU",
    ),
)

_VELA_DECONV: Conditions = {"stride": (2,), "kernel": tuple(range(1, 65)), "output_padding": (0,), "padding": ("same",)}
_ETHOS_U = Target(
    rules=(
        Rule("Conv", "supported", "Vela 5.2.0", "CONV_2D", {"stride": (1, 2, 3, 4), "kernel": tuple(range(1, 65))}),
        Rule("Relu", "supported", "Vela 5.2.0", "part of the INT8 range"),
        Rule("Clip", "supported", "Vela 5.2.0", "part of the INT8 range", {"range": ("0..1",)}),
        Rule("ConvTranspose", "supported", "Vela 5.2.0", "TRANSPOSE_CONV, SAME, stride 2", _VELA_DECONV),
        Rule(
            "ConvTranspose",
            "supported",
            "Vela 5.2.0",
            "its .tflite has 6x6 kernels without output padding",
            {"stride": (2,), "kernel": (5,), "output_padding": (1,)},
        ),
        Rule(
            "DepthToSpace",
            "supported",
            "Vela 5.2.0",
            "as RESHAPE, TRANSPOSE, RESHAPE; DEPTH_TO_SPACE would run on the CPU",
            {"mode": ("DCR",)},
        ),
        *_supported("Vela list", "Mul", "Add", "Sub"),
        Rule("Div", "host", "Vela list", "only on U85"),
        *(Rule(name, "host", "Vela list", "not listed") for name in ("Sqrt", "Round")),
    ),
    opsets=range(11, 21),
    upsample="subpixel-deconv2",
    gdn=Gdn("fails", "Vela list", "GDN stays in float32 in INT8 files, and Vela lists no SQRT"),
)

_QNN = Target(
    rules=(
        *_supported("QNN 2.7.0", "Conv", "Relu", "Clip", "DepthToSpace"),
        Rule("ConvTranspose", "supported", "QNN 2.7.0", "exact in float32 too", {"kernel": (2,), "stride": (2,)}),
        Rule("ConvTranspose", "supported", "QNN 2.7.0", "in INT8", {"precision": ("int8",)}),
        Rule("ConvTranspose", "fails", "QNN 2.7.0", "in float32 a chain of them is wrong along borders, by up to 0.25"),
    ),
    opsets=range(11, 21),
    upsample="subpixel",
    gdn=Gdn("fails", "QNN 2.7.0", "the HTP's compiler cannot finalize a graph with GDN (QNN_COMMON_ERROR_MEM_ALLOC)"),
)

_OPENVINO = Target(
    rules=_supported(
        "OpenVINO 2026.4.1",
        *("Conv", "ConvTranspose", "Relu", "Clip", "DepthToSpace", "Add", "Sub", "Mul", "Div", "Sqrt", "Round"),
    ),
    opsets=range(11, 21),
    upsample="subpixel",
    gdn=Gdn("supported", "OpenVINO 2026.4.1", "a CPU runs GDN"),
)

_IMX500 = Target(
    rules=(
        *_supported("IMX500 3.19.2", "Conv", "Relu", "Clip"),
        Rule("ConvTranspose", "supported", "IMX500 3.19.2", "without padding", {"kernel": (2,), "stride": (2,)}),
        Rule("ConvTranspose", "fails", "IMX500 3.19.2", "Input padding is not supported"),
        Rule("DepthToSpace", "supported", "IMX500 3.19.2", "as reshapes, which the torch part has"),
    ),
    opsets=range(11, 21),
    upsample="subpixel",
    gdn=Gdn("unknown", "IMX500 3.19.2", "GDN was not tried"),
)

_TPU_MLIR = Target(
    rules=_supported(
        "tpu-mlir 1.30.2",
        *("Conv", "ConvTranspose", "Relu", "Clip", "DepthToSpace", "Mul", "Div", "Sqrt"),
        why="from float files; QDQ files are refused",
    ),
    opsets=range(11, 21),
    upsample="subpixel",
    gdn=Gdn(
        "supported", "tpu-mlir 1.30.2", "GDN compiles; the encoder's INT8 has 17.5 dB SQNR on bm1684x, ReLU's 23.3 dB"
    ),
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
    gdn=_READ_GDN,
)

TARGETS: dict[str, Target] = {
    "drpai": _DRPAI,
    "rknn": _RKNN,
    "ethos-u": _ETHOS_U,
    "qnn": _QNN,
    "openvino": _OPENVINO,
    "imx500": _IMX500,
    "tpu-mlir": _TPU_MLIR,
    "tidl": _TIDL,
}
"""`generic` has no rules: any ONNX runtime runs the files."""
