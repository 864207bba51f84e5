"""What the flags with a choice are chosen from, for the command lines and for the code that acts on them.

Imports nothing but typing: a wrong command line is answered before torch is loaded.
"""

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Switch = Literal["auto"] | bool
"""On, off, or as the device and the data suggest."""
Split = Literal["val", "train"]

# Of the codec.
Parts = Literal["encoder", "decoder", "all", "none"]
"""Which transforms have ReLU in the place of GDN."""
Scope = Literal["replaced+hyper", "replaced", "all"]
"""Which parameters are trained."""
SwapInit = Literal["calibrated", "naive"]
"""How the weights around a replaced layer start."""
LossType = Literal["recon", "rd"]
Distortion = Literal["l1_msssim", "mse"]
AmpDtype = Literal["bf16", "fp16"]
Policy = Literal["none", "entropy", "entropy+decoder", "all_normexp", "custom"]
"""Which modules stay in fp32 under mixed precision."""
OptimizerName = Literal["adam", "adamw"]
Sched = Literal["cosine", "none", "onecycle", "plateau"]

# Of shards.
Encoding = Literal["raw", "jpg", "png"]
"""How a crop is stored."""
Crop = Literal["center", "random"]
Decode = Literal["exact", "fast"]
Verify = Literal["first", "always", "off"]
"""When a sample's hash is checked."""

# Of the export.
ExportPart = Literal["full", "encoder", "decoder", "all"]
TargetName = Literal["generic", "drpai", "rknn", "ethos-u", "tidl"]
Upsample = Literal["deconv5", "deconv6", "subpixel", "subpixel-deconv2"]
"""Ways to the same upsampling, see `export.upsample`."""
Method = Literal["minmax", "percentile", "entropy"]
"""How ranges of activations are chosen."""
