#pragma once

#include <cstdint>

#include "tensor_core.cuh"

// A block's product of 128 rows by 64 or 128 columns over steps of 64 bytes along k, which `kStages` buffers
// of shared memory bring ahead of the arithmetic: 4 warps of 64 x 32 or 64 x 64 results.
namespace d2lfast::cuda {

constexpr int kTileRows = 128, kStages = 3, kTileThreads = 128;

// Of a tile and 16 steps of k in 16 bits: of shared memory at 128 bytes a cycle for the narrow one, which
// reads 12 KiB and writes 6, of tensor cores at 1024 multiplications a cycle for the wide one (16 and 8 KiB).
template <int kColumns>
constexpr int kTileCycles = kColumns == 64 ? 144 : 256;

// How a product is computed: on tensor cores from 16 bits (`Element` BFloat16, Float16) or from floats
// rounded to TF32, or exactly in float32.
template <typename T>
struct TensorCore {
  using Element = T;
  static constexpr bool kExact = false;
};
struct Exact32 {
  using Element = float;
  static constexpr bool kExact = true;
};

template <typename T>
constexpr int kTileStep = 64 / sizeof(T);  // elements along k

// Distances of lines in shared memory, for which the lanes of an access meet different banks: of rows along
// k, and of steps of k with `kLine` rows each.
template <typename T>
constexpr int kRowPitch = (64 + 16) / sizeof(T);
template <int kLine>
constexpr int kStepPitch = kLine + 8;

// Results of a thread: element [i][j][2 * lower + half] is row 16 i + 8 lower + g and column 8 j + 2 t + half
// of its warp.
template <int kColumns>
using TileSums = float[4][kColumns / 16][4];

struct WarpPlace {
  int lane, g, t, row, column;  // row, column: of the warp's results in the tile
};
template <int kColumns>
__device__ inline WarpPlace warp_place() {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  return {lane, lane / 4, lane % 4, warp / 2 * 64, warp % 2 * (kColumns / 2)};
}

template <typename T, int kBlocks>
__device__ __forceinline__ void multiply_tiles(float (&sum)[4][kBlocks][4], uint32_t (&a)[4][4],
                                               uint32_t (&b)[kBlocks][2]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int n = 0; n < 16; ++n) a[n / 4][n % 4] = round_to_tf32(a[n / 4][n % 4]);
#pragma unroll
    for (int n = 0; n < 2 * kBlocks; ++n) b[n / 2][n % 2] = round_to_tf32(b[n / 2][n % 2]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) multiply_fragments<T>(sum[i][j], a[i], b[j]);
  }
}

// One step; both factors are stored in rows along k. `left` and `right` are the warp's first rows.
template <typename Core, int kColumns, typename Pointer>
__device__ __forceinline__ void multiply_along_rows(TileSums<kColumns>& sum, const WarpPlace& at,
                                                    Pointer left, Pointer right) {
  using T = typename Core::Element;
  constexpr int kPitch = kRowPitch<T>, kPiece = 16 / sizeof(T), kBlocks = kColumns / 16;
  if constexpr (Core::kExact) {
#pragma unroll 1
    for (int k = 0; k < kTileStep<T>; k += 4) {
      Vector<float, 4> a[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) a[i] = load_shared<4>(left + (i * 8 + at.g) * kPitch + k);
#pragma unroll
      for (int j = 0; j < 2 * kBlocks; ++j) {
        const auto b = load_shared<4>(right + (j / 2 * 8 + 2 * at.t + j % 2) * kPitch + k);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float& to = sum[i / 2][j / 2][i % 2 * 2 + j % 2];
#pragma unroll
          for (int n = 0; n < 4; ++n) to = fma(a[i].lane[n], b.lane[n], to);
        }
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kTileStep<T>; k += 2 * kPiece) {
      uint32_t a[4][4], b[kBlocks][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_matrices(a[i], left + (i * 16 + at.lane % 16) * kPitch + k + at.lane / 16 * kPiece);
      }
#pragma unroll
      for (int j = 0; j < kBlocks; j += 2) {
        uint32_t both[4];
        load_matrices(
            both, right + (j * 8 + at.lane / 16 * 8 + at.lane % 8) * kPitch + k + at.lane / 8 % 2 * kPiece);
        b[j][0] = both[0];
        b[j][1] = both[1];
        b[j + 1][0] = both[2];
        b[j + 1][1] = both[3];
      }
      multiply_tiles<T>(sum, a, b);
    }
  }
}

// One step; both factors are stored in lines of one k each.
template <typename Core, int kColumns, typename Pointer>
__device__ __forceinline__ void multiply_along_columns(TileSums<kColumns>& sum, const WarpPlace& at,
                                                       Pointer left, Pointer right) {
  using T = typename Core::Element;
  constexpr int kLeft = kStepPitch<kTileRows>, kRight = kStepPitch<kColumns>;
  constexpr int kBlocks = kColumns / 16;
  if constexpr (Core::kExact) {
#pragma unroll 4
    for (int k = 0; k < kTileStep<T>; ++k) {
      float a[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) a[i] = left[k * kLeft + i * 8 + at.g];
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        const auto b = load_shared<2>(right + k * kRight + j * 8 + 2 * at.t);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& to = sum[i / 2][j][i % 2 * 2 + half];
            to = fma(a[i], b.lane[half], to);
          }
        }
      }
    }
  } else {
    constexpr int kFragment = 32 / sizeof(T);
#pragma unroll
    for (int k = 0; k < kTileStep<T>; k += kFragment) {
      uint32_t a[4][4], b[kBlocks][2];
      if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          load_matrices_transposed(
              a[i], left + (k + at.lane / 16 * 8 + at.lane % 8) * kLeft + i * 16 + at.lane / 8 % 2 * 8);
        }
#pragma unroll
        for (int j = 0; j < kBlocks; j += 2) {
          uint32_t both[4];
          load_matrices_transposed(
              both, right + (k + at.lane / 8 % 2 * 8 + at.lane % 8) * kRight + j * 8 + at.lane / 16 * 8);
          b[j][0] = both[0];
          b[j][1] = both[1];
          b[j + 1][0] = both[2];
          b[j + 1][1] = both[3];
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int part = 0; part < 4; ++part) {
            const float value = left[(k + at.t + part / 2 * 4) * kLeft + i * 16 + part % 2 * 8 + at.g];
            a[i][part] = detail::bits_of_float(value);
          }
        }
#pragma unroll
        for (int n = 0; n < 2 * kBlocks; ++n) {
          const float value = right[(k + at.t + n % 2 * 4) * kRight + n / 2 * 8 + at.g];
          b[n / 2][n % 2] = detail::bits_of_float(value);
        }
      }
      multiply_tiles<T>(sum, a, b);
    }
  }
}

}  // namespace d2lfast::cuda
