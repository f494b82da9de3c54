// A torch without CUDA ships c10/cuda/*.h but not this header, which its build generates. It only says
// whether libc10_cuda is shared, which matters to no compile on Linux.
#pragma once
