#include "target_avx2.h"

#include "panel_product.inc"
