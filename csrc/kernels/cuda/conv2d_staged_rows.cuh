#pragma once

#include <cstdint>
#include <numeric>

#include "conv2d_element.cuh"
#include "device.cuh"
#include "tensor_core.cuh"

// Rows of a source in shared memory, as they lie in memory: in NCHW of one channel, in channels_last of all.
// What the taps of a row meet are neighbours there. They are read by units of 4 or 8 elements, which must
// begin at a multiple of their size, so that there are copies of the rows, each of which begins some elements
// after the one before: in one of them a result's first tap begins a unit. They are staged by pieces of 16
// bytes, floats rounded to TF32.
namespace d2lfast::cuda {

struct StagedRows {
  int32_t beside, planes;                // elements of a pixel in a row; planes: of the source's channels
  int32_t copy, plane;                   // pieces of a copy, and of a plane's copies
  Divider<int32_t> shift;                // elements from a copy to the next
  Divider<int32_t> pieces, lines, rows;  // pieces of a row, rows of a plane, of these those of an image

  // Of the first tap of a result, `column` results from the first: in units.
  template <int kUnit, int kUnitsOfPiece>
  __device__ int32_t place(int32_t column, int32_t stride) const {
    const int32_t element = column * stride * beside;
    return element / kUnit + shift.divide(element % kUnit) * copy * kUnitsOfPiece;
  }
};

// How the rows of a source are read by units of this many elements.
struct RowUnits {
  int32_t beside, planes;       // of StagedRows
  int64_t step, shift, copies;  // elements from a result's first tap to the next one's, and between copies
  bool lie;                     // whether the taps of a row are neighbours, in rows that are whole words

  template <typename Params>
  RowUnits(const Params& p, int64_t unit, int64_t element_bytes)
      : beside(p.channels_last ? p.source_channels : 1),
        planes(p.source_channels / beside),
        step(int64_t{p.w.stride} * beside),
        shift(std::gcd(step, unit)),
        copies(unit / shift),
        lie((!p.channels_last || p.groups == 1) && p.w.dilation == 1 &&
            int64_t{p.w.source} * beside * element_bytes % 4 == 0 && aligned(p.source, 4)) {}

  StagedRows staged(int64_t copy, int64_t pieces, int64_t images, int64_t rows) const {
    return {beside,
            planes,
            static_cast<int32_t>(copy),
            static_cast<int32_t>(copies * copy),
            Divider<int32_t>(shift),
            Divider<int32_t>(pieces),
            Divider<int32_t>(images * rows),
            Divider<int32_t>(rows)};
  }
};

// The rows of a tile as they are in memory, from its first image and plane on.
struct RowsInMemory {
  const uint32_t* first;
  int32_t height, words, planes;  // planes: of an image
  int32_t images, top, left;      // images that there are; row and element of the first staged ones
};

// Of `images` images from this one on, of each the planes from this one on.
template <typename T, typename Params>
__device__ RowsInMemory rows_in_memory(const Params& p, const StagedRows& rows, int64_t image, int32_t plane,
                                       int32_t images, int32_t top, int32_t left) {
  constexpr int kOfWord = 4 / sizeof(T);
  const int32_t words = p.w.source * rows.beside / kOfWord, planes = p.groups * rows.planes;
  const int64_t before = (image * planes + plane) * p.h.source * words;
  return {static_cast<const uint32_t*>(p.source) + before,
          p.h.source,
          words,
          planes,
          images,
          top,
          left * rows.beside};
}

// Calls with each piece and its place, in pieces.
template <typename T, int kCopies, int kShift, int kAhead, typename Store>
__device__ __forceinline__ void stage_copies(const StagedRows& rows, const RowsInMemory& from,
                                             int32_t threads, Store&& store) {
  constexpr int kOfWord = 4 / sizeof(T), kWords = 4 + ((kCopies - 1) * kShift + kOfWord - 1) / kOfWord;
  const int32_t count = rows.planes * rows.lines.divisor * rows.pieces.divisor;
  const uint32_t even_or_odd = from.left % 2 == 0 ? 0x3210 : 0x5432;
  struct Words {
    uint32_t word[kWords + 1];
    int32_t to;
  };
  const auto load_words = [&](int32_t i) {
    int32_t plane = i;
    const int32_t piece = take_remainder(plane, rows.pieces);
    const int32_t line = take_remainder(plane, rows.lines);
    int32_t y = line, image = 0;
    if (rows.lines.divisor != rows.rows.divisor) {
      image = line;
      y = take_remainder(image, rows.rows);
    }
    const int32_t h = from.top + y, w = (kOfWord == 2 ? from.left >> 1 : from.left) + piece * 4;
    const bool inside = is_below(h, from.height) && image < from.images;
    const uint32_t* words =
        from.first + ((image * from.planes + plane) * from.height * from.words + h * from.words + w);
    Words loaded;
#pragma unroll
    for (int n = 0; n < kWords + kOfWord - 1; ++n) {
      loaded.word[n] = inside && is_below(w + n, from.words) ? words[n] : 0;
    }
    loaded.to = plane * rows.plane + line * rows.pieces.divisor + piece;
    return loaded;
  };
  load_ahead<kAhead>(threadIdx.x, count, threads, load_words, [&](Words& loaded) {
    auto& word = loaded.word;
#pragma unroll
    for (int n = 0; n < kWords; ++n) {
      word[n] = kOfWord == 2 ? permuted_bytes(word[n], word[n + 1], even_or_odd) : round_to_tf32(word[n]);
    }
    int32_t to = loaded.to;
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) {
      Vector<uint32_t, 4> staged;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int m = copy * kShift / kOfWord + n;
        staged.lane[n] =
            copy * kShift % kOfWord == 0 ? word[m] : permuted_bytes(word[m], word[m + 1], 0x5432);
      }
      store(to, staged);
      to += rows.copy;
    }
  });
}

template <typename T, int kUnit, int kAhead, typename Store>
__device__ __forceinline__ void stage_rows(const StagedRows& rows, const RowsInMemory& from, int32_t threads,
                                           Store&& store) {
  switch (rows.shift.divisor) {
    case 1:
      return stage_copies<T, kUnit, 1, kAhead>(rows, from, threads, store);
    case 2:
      return stage_copies<T, kUnit / 2, 2, kAhead>(rows, from, threads, store);
    default:
      return stage_copies<T, kUnit / 4, 4, kAhead>(rows, from, threads, store);
  }
}

}  // namespace d2lfast::cuda
