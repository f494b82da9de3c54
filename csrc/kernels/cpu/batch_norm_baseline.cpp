#include "target_baseline.h"

#include "batch_norm.inc"
