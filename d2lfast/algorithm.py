"""Choice of the convolution algorithm: the override and its explanation."""

conv2d_algorithm = None
explain = None
