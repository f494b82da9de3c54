#include "target_baseline.h"

#include "conv2d_winograd_2x2.inc"
