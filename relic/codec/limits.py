"""What the model and the metrics demand of an image's sides. Imports nothing: flags are checked before torch is."""

STRIDE = 16
"""Pixels a latent spans in each direction: images are padded to a multiple of it, and crops must be one."""

MIN_MS_SSIM_SIDE = 161
"""MS-SSIM halves the image four times and its window is 11 wide: both sides must be over 160 pixels."""
