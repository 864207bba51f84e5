"""Constants that command lines need before torch is imported. Imports nothing."""

STRIDE = 16
"""Pixels per latent in each direction. Images are padded to a multiple of it; the sides of crops must be one."""

MAX_CHANNELS = 4096
"""Largest number of inner or latent channels."""

MIN_MS_SSIM_SIDE = 161
"""Smallest side in pixels for MS-SSIM: it halves the image four times and its window is 11 pixels wide."""

MIN_CALIB_IMAGES = 4
"""Smallest number of crops for a calibrated swap: one in four is held out."""

EMBEDDED = "embedded"
"""The name of the codec in this package, accepted wherever a checkpoint file is."""
