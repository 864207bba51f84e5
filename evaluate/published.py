"""What CompressAI publishes for `bmshj2018-factorized` (metric mse), quality 1 to 8, on Kodak's 24 images.

From github.com/InterDigitalInc/CompressAI, results/image/8bit-decoded/kodak/
compressai-bmshj2018-factorized_mse_ans_cuda.json at commit 128f003: means of per-image values on pixels rounded to 8
bits, rates of the coded strings. Qualities 1 to 5 have N=128, M=192; 6 to 8 have N=192, M=320.
"""

from evaluate.curves import Curve, Point

PUBLISHED_SOURCE = "CompressAI's results/image/8bit-decoded/kodak/compressai-bmshj2018-factorized_mse_ans_cuda.json"

_PUBLISHED_BPP = (0.122623, 0.188527, 0.287808, 0.440379, 0.648136, 0.966977, 1.351166, 1.833266)
_PUBLISHED_PSNR_DB = (26.9057, 28.2137, 29.6110, 31.2685, 32.9436, 35.3597, 37.3647, 39.5686)
_PUBLISHED_MS_SSIM = (0.909904, 0.935963, 0.955386, 0.970271, 0.980555, 0.987794, 0.992117, 0.995023)

PUBLISHED = Curve(
    "CompressAI bmshj2018-factorized, published",
    "published",
    tuple(
        Point(f"quality {quality}", *values)
        for quality, values in enumerate(
            zip(_PUBLISHED_BPP, _PUBLISHED_PSNR_DB, _PUBLISHED_MS_SSIM, strict=True), start=1
        )
    ),
)
