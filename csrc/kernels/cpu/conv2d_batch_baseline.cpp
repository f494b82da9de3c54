#include "target_baseline.h"

#include "conv2d_batch.inc"
