#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace d2lfast::ops {

// An input as the kernels see it: [N,C,L] planes, or a matrix of pixels whose columns are channels. Rows
// of few channels are joined, so that a column is a (pixel modulo `fold`, channel) and the vectors are full.
struct BatchNormGeometry {
  int64_t batch, channels, pixels;  // pixels of an image
  bool columns;
  int64_t fold = 1;
  int64_t width;               // fold * channels
  int64_t rows;                // of `width` columns
  int64_t tail;                // columns of the incomplete last row
  int64_t chunk_rows, chunks;  // over the rows, the incomplete one included

  BatchNormGeometry(const at::Tensor& input, at::MemoryFormat format)
      : batch(input.size(0)), channels(input.size(1)), pixels(1) {
    constexpr int64_t kChunkElements = 16384, kMaxChunks = 256;
    for (int64_t i = 2; i < input.dim(); ++i) pixels *= input.size(i);
    columns = pixels == 1 || format != at::MemoryFormat::Contiguous;
    if (columns && channels < 64) {
      // Up to 64 columns and a multiple of 16 where the channels allow it.
      fold = channels % 16 == 0 ? 64 / channels : std::max<int64_t>(1, 16 / (channels & -channels));
      while (fold * channels < 64) fold *= 2;
      fold = std::max<int64_t>(1, std::min(fold, count() / 8));
    } else if (columns && channels < 256) {
      // Whole vectors instead of a part of one in every row, if a few rows make them.
      const int64_t joined = 16 / std::min<int64_t>(16, channels & -channels);
      if (joined <= 4 && count() >= 8 * joined) fold = joined;
    }
    width = fold * channels;
    rows = count() / fold;
    tail = count() % fold * channels;
    chunk_rows = std::max<int64_t>({1, kChunkElements / width, (all_rows() + kMaxChunks - 1) / kMaxChunks});
    chunks = (all_rows() + chunk_rows - 1) / chunk_rows;
  }

  int64_t count() const { return batch * pixels; }
  int64_t all_rows() const { return rows + (tail > 0); }
  // Bytes of a row's bits.
  int64_t mask_pitch() const { return ((columns ? width : pixels) + 7) / 8; }
  int64_t mask_bytes() const {
    return columns ? rows * mask_pitch() + (tail + 7) / 8 : batch * channels * mask_pitch();
  }
};

}  // namespace d2lfast::ops
