#include "target_avx512.h"

#include "conv2d_winograd_2x2.inc"
