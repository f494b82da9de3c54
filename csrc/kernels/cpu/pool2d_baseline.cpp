#include "target_baseline.h"

#include "pool2d.inc"
