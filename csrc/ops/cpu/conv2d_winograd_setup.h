#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "../../kernels/conv2d_winograd.h"
#include "../layout.h"
#include "conv2d_passes.h"

namespace d2lfast::ops {

constexpr int64_t kFloat = sizeof(float);
// A strip longer than this would not leave room in the second-level cache.
constexpr int64_t kLongestStrip = 48;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline WinogradStrips strips_of(const WinogradKernels& table, int64_t height, int64_t width) {
  WinogradStrips s{divide_up(height, table.tile), divide_up(width, table.tile), 0, 0};
  s.chunks = divide_up(s.tile_cols, kLongestStrip);
  s.chunk = divide_up(s.tile_cols, s.chunks);
  return s;
}

inline int64_t count_strips(const WinogradStrips& s, int64_t batch) { return batch * s.tile_rows * s.chunks; }

// An odd number of vectors between the planes: at a power of two they would share cache sets.
inline WinogradTiles tiles_at(float* data, int64_t blocks, int64_t tiles, int64_t lanes) {
  return {data, tiles, (blocks * tiles | 1) * lanes};
}
inline int64_t tiles_size(const WinogradKernels& table, int64_t blocks, int64_t tiles) {
  return table.planes * (blocks * tiles | 1) * table.lanes;
}

struct WinogradTensor {
  at::Tensor data, activated;
  WinogradImages params;

  WinogradTensor(const at::Tensor& tensor, const at::Tensor* output, Activation activation)
      : data(dense(tensor)) {
    const bool channels_last = !data.is_contiguous();
    params = {data.const_data_ptr(), nullptr,      activation, channels_last, data.size(0), data.size(1),
              data.size(2),          data.size(3), 0,          data.size(1)};
    if (output != nullptr) {
      activated = output->contiguous(layout(channels_last));
      params.activated = activated.const_data_ptr();
    }
  }

  WinogradImages of_group(int64_t group, int64_t groups) const {
    WinogradImages images = params;
    images.channels = params.all / groups;
    images.first = group * images.channels;
    return images;
  }
};

// The rows of a weight, of its gradient or of a bias that belong to a group.
inline at::Tensor of_group(const at::Tensor& tensor, int64_t group, int64_t groups) {
  const int64_t rows = tensor.size(0) / groups;
  return tensor.narrow(0, group * rows, rows);
}

// The weight's gradient, and the bias's if it is defined, of groups so narrow that the products of one stay
// in the second-level cache.
bool winograd_fits_groups(const WinogradKernels& table, const Conv2dShape& shape);
bool winograd_grad_groups(const WinogradKernels& table, const Conv2dShape& shape,
                          const WinogradTensor& images, const WinogradTensor& gradients,
                          const at::Tensor& weight, const at::Tensor& bias);

}  // namespace d2lfast::ops
