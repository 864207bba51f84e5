"""Types of arrays that several packages pass on. Each function says the shape."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Symbols = npt.NDArray[np.int32]
