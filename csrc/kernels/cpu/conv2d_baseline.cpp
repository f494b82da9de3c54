#include "conv2d.inc"
#include "target_baseline.h"
