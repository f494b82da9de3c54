#include "target_baseline.h"

#include "recurrent.inc"
