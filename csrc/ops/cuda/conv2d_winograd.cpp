#include "conv2d_winograd.h"

#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "../../kernels/cuda/conv2d_winograd.h"
#include "../conv2d_cuda_rules.h"
#include "../layout.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

int32_t narrow(int64_t value) { return static_cast<int32_t>(value); }

}  // namespace

void run_cuda_winograd(const Conv2dShape& s, const at::Tensor& input, const at::Tensor& weight,
                       const at::Tensor* bias, Activation activation, bool transposed,
                       const at::Tensor& result) {
  // Images at a time whose transformed tiles are of this size: some for every multiprocessor, and not much
  // more than the L2 cache.
  constexpr int64_t kBytes = int64_t{96} << 20;
  const auto format = layout_of(result);
  const bool last = is_channels_last(format);
  const at::Tensor source = input.contiguous(format), taps = weight.contiguous();
  const at::Tensor offsets = bias != nullptr ? bias->contiguous() : at::Tensor();
  const int64_t sources = transposed ? s.result_channels : s.channels;
  const int64_t results = transposed ? s.channels : s.result_channels;
  const at::Tensor filters = at::empty({36, results, sources}, input.options());
  cuda::Conv2dWinogradParams p{};
  p.weight = taps.const_data_ptr<float>();
  p.bias = bias != nullptr ? offsets.const_data_ptr<float>() : nullptr;
  p.filters = filters.mutable_data_ptr<float>();
  p.activation = activation;
  p.batch = 1;
  p.source_channels = narrow(sources);
  p.result_channels = narrow(results);
  p.height = narrow(source.size(2));
  p.width = narrow(source.size(3));
  p.result_height = narrow(result.size(2));
  p.result_width = narrow(result.size(3));
  p.pad_h = narrow(transposed ? 2 - s.padding[0] : s.padding[0]);
  p.pad_w = narrow(transposed ? 2 - s.padding[1] : s.padding[1]);
  p.channels_last = last;
  p.transposed = transposed;
  const int64_t image_bytes = 36 * 4 * (sources + results) * p.tiles();
  const int64_t images = std::clamp<int64_t>(kBytes / image_bytes, 1, s.batch);
  const cudaStream_t stream = current_stream();
  C10_CUDA_CHECK(cuda::launch_winograd_filters(p, stream));
  for (int64_t first = 0; first < s.batch; first += images) {
    p.batch = narrow(std::min(images, s.batch - first));
    const int64_t tiles = p.tiles();
    const auto planes = [&](int64_t channels) {
      return at::empty({36, last ? tiles : channels, last ? channels : tiles}, input.options());
    };
    const at::Tensor transformed = planes(sources), products = planes(results);
    p.source = source.const_data_ptr<float>() + first * source[0].numel();
    p.result = result.mutable_data_ptr<float>() + first * result[0].numel();
    p.sources = transformed.mutable_data_ptr<float>();
    p.products = products.mutable_data_ptr<float>();
    C10_CUDA_CHECK(cuda::launch_winograd_sources(p, stream));
    at::Tensor out = products;
    if (last) {
      at::bmm_out(out, transformed, filters.transpose(1, 2));
    } else {
      at::bmm_out(out, filters, transformed);
    }
    C10_CUDA_CHECK(cuda::launch_winograd_results(p, stream));
  }
}

}  // namespace d2lfast::ops
