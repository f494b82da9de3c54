#include "target_avx512.h"

#include "conv2d_batch.inc"
