"""What command lines check before torch is imported. Imports nothing."""

STRIDE = 16
"""Pixels a latent spans in each direction: images are padded to a multiple of it, and crops must be one."""

MIN_MS_SSIM_SIDE = 161
"""MS-SSIM halves the image four times and its window is 11 wide: both sides must be over 160 pixels."""

MIN_CALIB_IMAGES = 4
"""Crops that a calibrated swap needs: one in four is held back."""

EMBEDDED = "embedded"
"""Names the codec that ships with relic wherever a checkpoint file may be named."""
