#include "target_baseline.h"

#include "cross_entropy.inc"
