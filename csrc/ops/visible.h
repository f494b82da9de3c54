#pragma once

// Checks that all devices share. The tests' emulated GPU is a library of its own, which links the extension.
#define D2LFAST_VISIBLE __attribute__((visibility("default")))
