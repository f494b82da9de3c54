#include "conv2d_winograd.h"

#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "../../kernels/cuda/conv2d_winograd.h"
#include "../conv2d_cuda_rules.h"
#include "../layout.h"
#include "runtime.h"

namespace d2lfast::ops {

namespace {

int32_t narrow(int64_t value) { return static_cast<int32_t>(value); }

// Images at a time whose transformed tiles are of this size: some for every multiprocessor, and not much more
// than the L2 cache. tiles: of an image; channels: source and result channels together.
int64_t images_of(const Conv2dShape& s, int64_t tiles) {
  constexpr int64_t kBytes = int64_t{96} << 20;
  return std::clamp<int64_t>(kBytes / (36 * 4 * (s.channels + s.result_channels) * tiles), 1, s.batch);
}

// [36,C,T], channels_last [36,T,C].
at::Tensor planes(const at::Tensor& like, int64_t channels, int64_t tiles, bool channels_last) {
  return at::empty({36, channels_last ? tiles : channels, channels_last ? channels : tiles}, like.options());
}

}  // namespace

void run_cuda_winograd(const Conv2dShape& s, const at::Tensor& input, const at::Tensor& weight,
                       const Conv2dEpilogue& epilogue, bool transposed, const at::Tensor& result) {
  const auto format = layout_of(result);
  const bool last = is_channels_last(format);
  const at::Tensor source = input.contiguous(format), taps = weight.contiguous();
  at::Tensor bias, residual;
  const int64_t sources = transposed ? s.result_channels : s.channels;
  const int64_t results = transposed ? s.channels : s.result_channels;
  const at::Tensor filters = at::empty({36, results, sources}, input.options());
  cuda::Conv2dWinogradParams p{};
  p.weight = taps.const_data_ptr<float>();
  p.bias = operand_pointer<float>(epilogue.bias, at::MemoryFormat::Contiguous, bias);
  const float* added = operand_pointer<float>(epilogue.residual, format, residual);
  p.filters = filters.mutable_data_ptr<float>();
  p.activation = epilogue.activation;
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
  const int64_t images = images_of(s, p.tiles());
  const cudaStream_t stream = current_stream();
  C10_CUDA_CHECK(cuda::launch_winograd_filters(p, stream));
  for (int64_t first = 0; first < s.batch; first += images) {
    p.batch = narrow(std::min(images, s.batch - first));
    const int64_t tiles = p.tiles();
    const at::Tensor transformed = planes(input, sources, tiles, last);
    const at::Tensor products = planes(input, results, tiles, last);
    p.source = source.const_data_ptr<float>() + first * source[0].numel();
    p.result = result.mutable_data_ptr<float>() + first * result[0].numel();
    if (added != nullptr) p.residual = added + first * result[0].numel();
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

at::Tensor cuda_winograd_weight_gradient(const Conv2dShape& s, const at::Tensor& gradient,
                                         const at::Tensor& input, const at::Tensor& weight,
                                         at::MemoryFormat format) {
  const bool last = is_channels_last(format);
  const at::Tensor grad = gradient.contiguous(format), source = input.contiguous(format);
  const at::Tensor total = at::empty(weight.sizes(), weight.options());
  cuda::Conv2dWinogradParams p{};
  p.grad_weight = total.mutable_data_ptr<float>();
  p.batch = 1;
  p.source_channels = narrow(s.channels);
  p.result_channels = narrow(s.result_channels);
  p.height = narrow(s.height);
  p.width = narrow(s.width);
  p.result_height = narrow(s.result_height());
  p.result_width = narrow(s.result_width());
  p.pad_h = narrow(s.padding[0]);
  p.pad_w = narrow(s.padding[1]);
  p.channels_last = last;
  const int64_t images = images_of(s, p.tiles());
  const cudaStream_t stream = current_stream();
  at::Tensor products = at::empty({36, s.result_channels, s.channels}, input.options());
  for (int64_t first = 0; first < s.batch; first += images) {
    p.batch = narrow(std::min(images, s.batch - first));
    const int64_t tiles = p.tiles();
    const at::Tensor sources = planes(input, s.channels, tiles, last);
    const at::Tensor gradients = planes(input, s.result_channels, tiles, last);
    p.source = source.const_data_ptr<float>() + first * source[0].numel();
    p.sources = sources.mutable_data_ptr<float>();
    p.gradient = grad.const_data_ptr<float>() + first * grad[0].numel();
    p.gradients = gradients.mutable_data_ptr<float>();
    C10_CUDA_CHECK(cuda::launch_winograd_sources(p, stream));
    C10_CUDA_CHECK(cuda::launch_winograd_gradients(p, stream));
    const at::Tensor left = last ? gradients.transpose(1, 2) : gradients;
    const at::Tensor right = last ? sources : sources.transpose(1, 2);
    // The parts are added in their order.
    if (first == 0) {
      at::bmm_out(products, left, right);
    } else {
      products.baddbmm_(left, right);
    }
  }
  p.batch = narrow(s.batch);
  p.source = source.const_data_ptr<float>();
  p.gradient = grad.const_data_ptr<float>();
  p.products = products.mutable_data_ptr<float>();
  C10_CUDA_CHECK(cuda::launch_winograd_weight(p, stream));
  if (weight.is_contiguous()) return total;
  return at::empty_like(weight).copy_(total);
}

}  // namespace d2lfast::ops
