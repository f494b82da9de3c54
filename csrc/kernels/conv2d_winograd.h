#pragma once

#include <cstdint>

#include "activation.h"
#include "dtype.h"

namespace d2lfast {

// Winograd's minimal filtering F(4x4, 3x3) and F(2x2, 3x3) for dense 3x3 convolutions of stride 1 (Lavin and
// Gray, 2016): a 4x4 tile of results costs 36 products for each pair of channels instead of 144, a 2x2 tile
// 16 instead of 36. With the matrices of kernels/cpu/winograd_transform.inc, for one tile of sources d,
// filter g and gradient z
//   results          A^T [(G g G^T) o (B^T d B)] A
//   filter gradient  G^T [(B^T d B) o (A z A^T)] G
// where the products o are summed over channels (results) or tiles (filter gradient): 36 (16) matrix
// products, one for each element of the transformed tiles, a plane of them. float32 arithmetic in every
// dtype.
//
// The tiles of an image are numbered by rows. A strip is `chunk` neighbours of one row of tiles; the last
// strip of a row is filled up with tiles of zeros.

// Transformed tiles: planes [channel blocks][tiles][lanes] of floats, the channels beyond the last zero.
struct WinogradTiles {
  float* data;
  int64_t tiles;
  int64_t plane;  // elements between planes
};

// Images [N,C,H,W], contiguous or channels_last: C channels from `first` on of `all`, those of a group.
struct WinogradImages {
  const void* data;
  const void* activated;  // null, or of the same shape and layout: the elements are data * f'(activated)
  Activation activation;
  bool channels_last;
  int64_t batch, channels, height, width;
  int64_t first, all;
};

struct WinogradStrips {
  int64_t tile_rows, tile_cols;  // of an image
  int64_t chunk, chunks;         // tiles of a strip, strips of a row
};

// Source tiles, two wider than those of the results, which they overlap by; or gradient tiles.
struct WinogradSource {
  WinogradImages images;
  WinogradStrips strips;
  int64_t pad_top, pad_left;  // the first tile begins at (-pad_top, -pad_left)
};

// Filters by result channel r, source channel s and tap; flipped for the data gradient.
struct WinogradWeight {
  const void* data;
  int64_t result_channels, source_channels;
  int64_t result_stride, source_stride, h_stride, w_stride;
  int64_t size;  // elements of the tensor, all of them between the first and data + size
  bool flipped;
};

struct WinogradResult {
  void* data;  // [N,all,H,W], contiguous or channels_last
  bool channels_last;
  int64_t channels, height, width;
  int64_t first, all;  // channels [first, first + channels) of `all` are computed
  WinogradStrips strips;
  int64_t source_blocks;  // channel blocks of the transformed source
  const void* bias;       // [all] or null
  const void* residual;   // null, or laid out as the result: added before the activation
  Activation activation;
};

struct WinogradGradWeight {
  void* data;  // [K,C,3,3], contiguous or channels_last
  bool channels_last;
  int64_t result_channels, source_channels;
};

// Larger kernels and strides as a 3x3 convolution of more channels. The kernel of an axis is cut into pieces
// of up to three taps, a stride apart: piece i has the taps offset[i] + stride * {0, 1, 2}. Channel c of the
// source becomes the channels (c, i, j), in channels_last (i, j, c), of which pixel (y, x) is the source's at
// (stride * y + offset[i] - pad, ...), zero outside.
struct WinogradPieces {
  WinogradImages images;
  int64_t stride[2], pad[2];
  int64_t count[2];
  const int64_t* offset[2];
  void* result;  // [N, C * count[0] * count[1], height, width], laid out as the images
  int64_t height, width;
};

struct WinogradKernels {
  int64_t lanes;
  int64_t tile, planes;  // of results: 4 or 2; (tile + 2)^2
  // Result channels of a block: 2 lanes. `staging`: see winograd_staging.
  //
  // Channel blocks [begin_block, end_block) of the strips [begin, end), written at `first_tile` on. `sums`:
  // null, or [channel blocks][lanes], to which the sums of the strips' pixels are added (gradient tiles).
  void (*source[kNumDTypes])(const WinogradSource& source, int64_t begin, int64_t end, int64_t begin_block,
                             int64_t end_block, const WinogradTiles& tiles, int64_t first_tile,
                             float* staging);
  void (*gradient[kNumDTypes])(const WinogradSource& source, int64_t begin, int64_t end, int64_t begin_block,
                               int64_t end_block, const WinogradTiles& tiles, int64_t first_tile,
                               float* staging, float* sums);
  // One block of result channels: packed, see winograd_filter_plane.
  void (*weight[kNumDTypes])(const WinogradWeight& weight, int64_t block, float* packed, float* staging);
  // The results of the strips [begin, end), whose transformed sources begin at `first_tile`, for one block.
  // `products`: planes * (tiles * 2 lanes + 16). False: a result (before the activation) is not finite.
  bool (*result[kNumDTypes])(const WinogradResult& result, int64_t begin, int64_t end, int64_t block,
                             const WinogradTiles& tiles, int64_t first_tile, const float* packed,
                             float* products, float* staging);
  // Sums over the tiles for the source blocks [begin, end) and one block of result channels:
  // products [planes][(end - begin) * lanes][2 lanes], added to or overwritten.
  void (*products)(const WinogradTiles& source, const WinogradTiles& gradient, int64_t begin, int64_t end,
                   int64_t block, bool add, float* products);
  // The filter gradients from these products. False: one is not finite.
  bool (*grad_weight[kNumDTypes])(const WinogradGradWeight& result, int64_t begin, int64_t end, int64_t block,
                                  const float* products, float* staging);
  // Null for 2x2. Items [begin, end): the N * C planes, or in channels_last the N * height rows of the
  // result.
  void (*pieces[kNumDTypes])(const WinogradPieces& pieces, int64_t begin, int64_t end);
};

// Tile rows whose sources are staged together, and the floats of staging that any call needs, of either tile.
constexpr int64_t kWinogradStagedRows = 4;
inline int64_t winograd_staging(int64_t lanes, int64_t chunk) {
  const int64_t pixels = (4 * kWinogradStagedRows + 2) * (4 * chunk + 2 + lanes);
  const int64_t filters = 16 * 9 + 16;
  return (pixels > filters ? pixels : filters) * lanes;
}

// Packed filters: planes [source channels, whole lanes][2 lanes] at this distance. The planes alone, often
// a power of two, would share cache sets, and the transform writes to all of them.
inline int64_t winograd_filter_plane(int64_t lanes, int64_t source_blocks) {
  return source_blocks * lanes * 2 * lanes + 16;
}

}  // namespace d2lfast
