#include "target_baseline.h"

#include "conv2d_channels_weight.inc"
