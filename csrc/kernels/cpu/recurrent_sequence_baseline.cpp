#include "target_baseline.h"

#include "recurrent_sequence.inc"
