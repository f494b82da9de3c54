#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "device.cuh"
#include "launch.cuh"
#include "pool2d.h"
#include "pool2d_element.cuh"
#include "pool2d_geometry.cuh"
#include "pool2d_planes.h"
#include "pool2d_rows.cuh"
#include "pool2d_tiles.cuh"
#include "vector.cuh"

namespace d2lfast::cuda {
namespace {

template <typename Window, int V, bool Planar, typename T, typename P, typename Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    max_pool2d(const T* __restrict__ input, T* __restrict__ output, P* __restrict__ position,
               const PoolGeometry g, const PoolItems<Index> items) {
  for (Index item = first_item<Index>(); item < items.count; item += grid_width<Index>()) {
    pool_item<Window, V, Planar>(item, input, output, position, g, items);
  }
}

template <typename Window, int V, bool Planar, typename T, typename P, typename Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    max_pool2d_backward(const T* __restrict__ grad_output, const P* __restrict__ position,
                        T* __restrict__ grad_input, const PoolGeometry g, const PoolItems<Index> items) {
  for (Index item = first_item<Index>(); item < items.count; item += grid_width<Index>()) {
    pool_backward_item<Window, V, Planar>(item, grad_output, position, grad_input, g, items);
  }
}

template <typename Window, typename T, typename P>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    max_pool2d_rows(const T* __restrict__ input, T* __restrict__ output, P* __restrict__ position,
                    const PoolGeometry g, const PoolItems<int32_t> items) {
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    pool_rows_item<Window>(item, input, output, position, g, items);
  }
}

template <typename Window, bool kWide, typename T, typename P>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    max_pool2d_bands(const T* __restrict__ grad_output, const P* __restrict__ position,
                     T* __restrict__ grad_input, const PoolGeometry g, const PoolItems<int32_t> items,
                     bool pairs) {
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    pool_band_item<Window, kWide>(item, grad_output, position, grad_input, g, items, pairs);
  }
}

template <int V, typename T, typename P>
__global__ void __launch_bounds__(kThreads, kTileBlocks)
    max_pool2d_tiles(const T* __restrict__ input, T* __restrict__ output, P* __restrict__ position,
                     const PoolGeometry g, const PoolItems<int32_t> items) {
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    pool_tile_item<V>(item, input, output, position, g, items);
  }
}

template <int V, typename T>
__global__ void __launch_bounds__(kThreads, kTileBlocks)
    max_pool2d_tiles_backward(const T* __restrict__ grad_output, const uint8_t* __restrict__ position,
                              T* __restrict__ grad_input, const PoolGeometry g,
                              const PoolItems<int32_t> items) {
  for (int32_t item = first_item<int32_t>(); item < items.count; item += grid_width<int32_t>()) {
    pool_tile_backward_item<V>(item, grad_output, position, grad_input, g, items);
  }
}

template <typename P, typename Index>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    max_pool2d_position_to_index(const P* __restrict__ position, int64_t* __restrict__ index,
                                 const PoolGeometry g, const PoolItems<Index> items) {
  for (Index item = first_item<Index>(); item < items.count; item += grid_width<Index>()) {
    pool_index_item(item, position, index, g, items);
  }
}

template <int V, bool Planar>
struct Access {
  static constexpr int lanes = V;
  static constexpr bool planar = Planar;
};

// The variants that are worth their binary: int32 offsets for tensors below 2^31 elements, fixed windows,
// accesses of 16 bytes in channels_last, and in NCHW where rows allow them (pool2d_rows.cuh).
// Everything else takes the general kernel.
// FixedPlanes: whether NCHW has fixed windows here.
template <typename T, typename P, bool FixedPlanes, typename Params, typename Body>
cudaError_t with_variant(const Params& p, bool aligned, Body&& body) {
  constexpr Access<1, true> kPlanar;
  constexpr Access<1, false> kSingle;
  constexpr Access<kVectorWidth<T>, false> kWide;
  if (!coordinates_fit(p)) return cudaErrorInvalidValue;
  if (!offsets_fit(p)) {
    return p.channels_last ? body(AnyWindow{}, kSingle, int64_t{}) : body(AnyWindow{}, kPlanar, int64_t{});
  }
  const bool wide = p.channels_last && aligned && p.c % kWide.lanes == 0;
  if constexpr (!std::is_same_v<P, int32_t>) {
    if (wide || (FixedPlanes && !p.channels_last)) {
      const PoolGeometry g = geometry_of(p);
      const auto take = [&](auto window) {
        if constexpr (FixedPlanes) {
          if (!wide) return body(window, kPlanar, int32_t{});
        }
        return body(window, kWide, int32_t{});
      };
      if (matches<FixedWindow<2, 2>>(g)) return take(FixedWindow<2, 2>{});
      if (matches<FixedWindow<3, 2>>(g)) return take(FixedWindow<3, 2>{});
    }
  }
  if (p.channels_last) {
    return wide ? body(AnyWindow{}, kWide, int32_t{}) : body(AnyWindow{}, kSingle, int32_t{});
  }
  return body(AnyWindow{}, kPlanar, int32_t{});
}

// Calls body with the first of the windows for which `takes` holds; returns whether there is one.
template <typename... Windows, typename Takes, typename Body>
bool with_window(Takes&& takes, Body&& body) {
  const auto take = [&](auto window) {
    if (!takes(window)) return false;
    body(window);
    return true;
  };
  return (take(Windows{}) || ...);
}

template <typename Params>
bool narrow_planes(const Params& p) {
  return !p.channels_last && coordinates_fit(p) && offsets_fit(p);
}

template <typename T, typename Params>
bool takes_tiles(const Params& p) {
  return p.channels_last && p.c % kVectorWidth<T> == 0 && coordinates_fit(p) && offsets_fit(p) &&
         matches<FixedWindow<3, 1>>(geometry_of(p));
}

template <typename T, typename P>
cudaError_t launch_forward(const MaxPool2dParams& p, DType dtype, cudaStream_t stream) {
  const auto* input = static_cast<const T*>(p.input);
  auto* output = static_cast<T*>(p.output);
  auto* position = static_cast<P*>(p.position);
  const bool wide =
      aligned(input, 16) && aligned(output, 16) && aligned(position, sizeof(P) * kVectorWidth<T>);
  if constexpr (!std::is_same_v<P, int32_t>) {
    if (narrow_planes(p)) {
      cudaError_t error = cudaSuccess;
      const PoolGeometry g = geometry_of(p);
      const bool rows = with_window<RowWindow<2, 2, 0>, RowWindow<3, 2, 1>>(
          [&](auto window) { return wide && takes_rows<decltype(window)>(g, kRowInputs<T>); },
          [&](auto window) {
            constexpr int kOut = kRowOutputs<decltype(window), T>;
            const auto items = PoolItems<int32_t>::of(images_of(p), 1, p.oh, p.ow / kOut, 1);
            error = launch(max_pool2d_rows<decltype(window), T, P>, {blocks_for(items.count), kThreads},
                           stream, input, output, position, g, items);
          });
      if (rows) return error;
    }
    if (const auto error = launch_max_pool2d_planes(p, dtype, stream)) return *error;
    if (wide && takes_tiles<T>(p)) {
      constexpr int V = kVectorWidth<T>;
      const auto items =
          PoolItems<int32_t>::of(p.n, p.c, tiles_of(p.oh, kTileSide), tiles_of(p.ow, kTileSide), V);
      return launch(max_pool2d_tiles<V, T, P>, {blocks_for(items.count), kThreads}, stream, input, output,
                    position, geometry_of(p), items);
    }
  }
  return with_variant<T, P, false>(p, wide, [&](auto window, auto access, auto offset) {
    constexpr int kLanes = decltype(access)::lanes;
    const PoolGeometry g = geometry_of(p);
    const auto items = PoolItems<decltype(offset)>::of(images_of(p), g.channels, p.oh, p.ow, kLanes);
    return launch(max_pool2d<decltype(window), kLanes, decltype(access)::planar, T, P, decltype(offset)>,
                  {blocks_for(items.count), kThreads}, stream, input, output, position, g, items);
  });
}

template <typename T, typename P>
cudaError_t launch_backward(const MaxPool2dBackwardParams& p, DType dtype, cudaStream_t stream) {
  const auto* grad_output = static_cast<const T*>(p.grad_output);
  const auto* position = static_cast<const P*>(p.position);
  auto* grad_input = static_cast<T*>(p.grad_input);
  const bool wide = aligned(grad_output, 16) && aligned(grad_input, 16) &&
                    aligned(position, sizeof(P) * std::max(kVectorWidth<T>, kBandInputs / 2));
  if constexpr (!std::is_same_v<P, int32_t>) {
    if (narrow_planes(p)) {
      cudaError_t error = cudaSuccess;
      const PoolGeometry g = geometry_of(p);
      const bool pairs = p.w % 2 == 0 && aligned(grad_input, 2 * sizeof(T));
      const auto run_bands = [&](auto window, auto by_16_bytes) {
        const int64_t groups = (p.w + kBandInputs - 1) / kBandInputs;
        const auto items = PoolItems<int32_t>::of(
            images_of(p), 1, gradient_blocks<decltype(window)>(g.height, g.pad_h), groups, 1);
        error = launch(max_pool2d_bands<decltype(window), decltype(by_16_bytes)::value, T, P>,
                       {blocks_for(items.count), kThreads}, stream, grad_output, position, grad_input, g,
                       items, pairs);
      };
      const bool taken =
          with_window<RowWindow<2, 2, 0>, RowWindow<3, 2, 1>>(
              [&](auto window) { return wide && takes_rows<decltype(window)>(g, kBandInputs); },
              [&](auto window) { run_bands(window, std::true_type{}); }) ||
          with_window<RowWindow<2, 2, 0>, RowWindow<3, 2, 0>, RowWindow<3, 2, 1>>(
              [&](auto window) { return is_window<decltype(window)>(g); },
              [&](auto window) { run_bands(window, std::false_type{}); });
      if (taken) return error;
    }
    if (const auto error = launch_max_pool2d_planes_backward(p, dtype, stream)) return *error;
    if (wide && takes_tiles<T>(p)) {
      constexpr int V = kVectorWidth<T>;
      const auto items =
          PoolItems<int32_t>::of(p.n, p.c, tiles_of(p.h, kGradientRows), tiles_of(p.w, kTileSide), V);
      return launch(max_pool2d_tiles_backward<V, T>, {blocks_for(items.count), kThreads}, stream, grad_output,
                    position, grad_input, geometry_of(p), items);
    }
  }
  return with_variant<T, P, true>(p, wide, [&](auto window, auto access, auto offset) {
    constexpr int kLanes = decltype(access)::lanes;
    const PoolGeometry g = geometry_of(p);
    using Window = decltype(window);
    const auto items =
        PoolItems<decltype(offset)>::of(images_of(p), g.channels, gradient_blocks<Window>(g.height, g.pad_h),
                                        gradient_blocks<Window>(g.width, g.pad_w), kLanes);
    return launch(
        max_pool2d_backward<decltype(window), kLanes, decltype(access)::planar, T, P, decltype(offset)>,
        {blocks_for(items.count), kThreads}, stream, grad_output, position, grad_input, g, items);
  });
}

template <typename P, typename Index>
cudaError_t launch_index(const MaxPool2dIndexParams& p, cudaStream_t stream) {
  const PoolGeometry g = geometry_of(p);
  const auto items = PoolItems<Index>::of(images_of(p), g.channels, p.oh, p.ow, 1);
  return launch(max_pool2d_position_to_index<P, Index>, {blocks_for(items.count), kThreads}, stream,
                static_cast<const P*>(p.position), p.index, g, items);
}

}  // namespace

cudaError_t launch_max_pool2d(const MaxPool2dParams& params, DType dtype, cudaStream_t stream) {
  if (params.n * params.c * params.oh * params.ow == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (params.position == nullptr) return launch_forward<T, NoPosition>(params, dtype, stream);
    if (params.position_bytes == 1) return launch_forward<T, uint8_t>(params, dtype, stream);
    return launch_forward<T, int32_t>(params, dtype, stream);
  });
}

cudaError_t launch_max_pool2d_backward(const MaxPool2dBackwardParams& params, DType dtype,
                                       cudaStream_t stream) {
  if (params.n * params.c * params.h * params.w == 0) return cudaSuccess;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (params.position_bytes == 1) return launch_backward<T, uint8_t>(params, dtype, stream);
    return launch_backward<T, int32_t>(params, dtype, stream);
  });
}

cudaError_t launch_max_pool2d_position_to_index(const MaxPool2dIndexParams& params, cudaStream_t stream) {
  if (params.n * params.c * params.oh * params.ow == 0) return cudaSuccess;
  if (!coordinates_fit(params)) return cudaErrorInvalidValue;
  const bool byte = params.position_bytes == 1;
  if (offsets_fit(params)) {
    return byte ? launch_index<uint8_t, int32_t>(params, stream)
                : launch_index<int32_t, int32_t>(params, stream);
  }
  return byte ? launch_index<uint8_t, int64_t>(params, stream)
              : launch_index<int32_t, int64_t>(params, stream);
}

}  // namespace d2lfast::cuda
