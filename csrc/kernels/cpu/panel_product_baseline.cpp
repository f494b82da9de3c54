#include "target_baseline.h"

#include "panel_product.inc"
