#include "target_avx2.h"

#include "conv2d_batch.inc"
