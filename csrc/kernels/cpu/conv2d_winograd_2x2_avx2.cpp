#include "target_avx2.h"

#include "conv2d_winograd_2x2.inc"
