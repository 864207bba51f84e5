"""The allowed values of flags, for the command lines and for the code that uses them.

Imports only typing, so that a wrong command line is refused before torch is loaded.
"""

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Switch = Literal["auto"] | bool
"""On, off, or decided by the device and the data."""
Split = Literal["val", "train"]

# The codec.
Parts = Literal["encoder", "decoder", "all", "none"]
"""Which transforms have ReLU instead of GDN."""
Scope = Literal["replaced+hyper", "replaced", "all"]
"""Which parameters are trained."""
SwapInit = Literal["calibrated", "naive"]
"""How the weights around a replaced layer start."""
LossType = Literal["recon", "rd"]
Distortion = Literal["l1_msssim", "mse"]
AmpDtype = Literal["bf16", "fp16"]
Policy = Literal["none", "entropy", "entropy+decoder", "all_normexp", "custom"]
"""Which modules stay in fp32 under mixed precision."""
OptimizerName = Literal["adam", "adamw", "soap"]
QatRanges = Literal["learned", "moving_average", "drpai"]
"""How --qat finds the ranges of activations."""
Sched = Literal["cosine", "none", "onecycle", "plateau"]

# Shards.
Encoding = Literal["raw", "jpg", "png"]
"""How a crop is stored."""
CropPlace = Literal["center", "random"]
Decode = Literal["exact", "fast"]
EngineName = Literal["local", "ray"]
"""What runs the workers of prep."""
Verify = Literal["first", "always", "off"]
"""When a sample's hash is checked."""
Direct = Literal["auto", "on", "off"]
"""Whether shards are read past the page cache."""
MOST_CACHE_GB = 1e9
"""The largest --cache_gb: an exabyte. Larger numbers, and those that are none, are slips."""

# The export.
ExportPart = Literal["full", "encoder", "decoder", "all"]
TargetName = Literal["generic", "drpai", "rknn", "ethos-u", "qnn", "openvino", "imx500", "tpu-mlir", "tidl"]
ToolchainName = Literal["openvino", "qnn", "ethos-u", "rknn"]
"""Vendors' compilers that export/compile_parts.py runs."""
Rdoq = Literal["off", "fast", "full"]
"""How hard the encoder looks for symbols that are worth moving, see `relic.bitstream.rdoq`."""
Upsample = Literal["deconv5", "deconv6", "subpixel", "subpixel-deconv2"]
"""Equivalent forms of the decoder's upsampling, see `export.upsample`."""
Int8Parts = Literal["encoder", "decoder", "all"]
"""Which parts of an export are in INT8."""
Method = Literal["minmax", "percentile", "entropy", "learned"]
"""How INT8 ranges are chosen."""
