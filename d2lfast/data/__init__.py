"""Image data sets as tensors in memory, and batches of them."""

from d2lfast.data.digits import digits
from d2lfast.data.fashion_mnist import fashion_mnist
from d2lfast.data.idx import read_idx
from d2lfast.data.images import Images, default_images
from d2lfast.data.loader import TensorLoader

__all__ = ["Images", "TensorLoader", "default_images", "digits", "fashion_mnist", "read_idx"]
