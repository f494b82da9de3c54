#include <ATen/Parallel.h>

#include <algorithm>
#include <optional>

#include "../../kernels/conv2d_batch.h"
#include "../../kernels/cpu/isa.h"
#include "../allocate.h"
#include "../dtype.h"
#include "../layout.h"
#include "conv2d_passes.h"
#include "scratch.h"

D2LFAST_DECLARE_TABLES(Conv2dBatchKernels, conv2d_batch_kernels);

namespace d2lfast::ops {

namespace {

constexpr int64_t kFloat = sizeof(float);

const Conv2dBatchKernels& kernels() { return D2LFAST_SELECT_TABLE(conv2d_batch_kernels); }

// Images of one layout, and the forward output that they are to be derived through.
struct BatchImages {
  at::Tensor data, activated;
  Activation activation;
  BatchPlanes planes;
  int64_t batch, size;  // of an image

  BatchImages(const at::Tensor& tensor, const at::Tensor* output, Activation activation)
      : data(dense(tensor)), activation(activation), batch(tensor.size(0)) {
    if (output != nullptr) {
      activated = output->contiguous(layout(!data.is_contiguous()));
    }
    const int64_t channels = data.size(1), height = data.size(2), width = data.size(3);
    const int64_t lanes = kernels().lanes;
    size = channels * height * width;
    planes = data.is_contiguous()
                 ? BatchPlanes{channels, height, width, height * width * lanes, width * lanes, lanes}
                 : BatchPlanes{channels, height, width, lanes, width * channels * lanes, channels * lanes};
  }

  int64_t images_of(int64_t group) const {
    return std::min(kernels().lanes, batch - group * kernels().lanes);
  }

  // Elements of a group of images.
  int64_t at(int64_t group) const { return group * kernels().lanes * size * data.element_size(); }

  void interleave(int dtype, int64_t group, float* to) const {
    const char* from = static_cast<const char*>(data.const_data_ptr()) + at(group);
    const char* y =
        activated.defined() ? static_cast<const char*>(activated.const_data_ptr()) + at(group) : nullptr;
    kernels().interleave[dtype](from, y, activation, size, images_of(group), to);
  }

  void separate(int dtype, int64_t group, const float* from) const {
    kernels().separate[dtype](from, size, images_of(group),
                              static_cast<char*>(data.mutable_data_ptr()) + at(group));
  }
};

int64_t groups_of(int64_t batch) { return (batch + kernels().lanes - 1) / kernels().lanes; }

// A weight [M,C,KH,KW] in float32, contiguous; `turned`: [C,M,KH,KW] with its taps reversed.
at::Tensor arranged(const at::Tensor& weight, bool turned) {
  const at::Tensor wide = weight.to(at::kFloat).contiguous();
  if (!turned) return wide;
  const int64_t results = wide.size(0), channels = wide.size(1), taps = wide.size(2) * wide.size(3);
  at::Tensor to = empty({channels, results, wide.size(2), wide.size(3)}, wide.options());
  const float* from = wide.const_data_ptr<float>();
  float* out = to.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t m = 0; m < results; ++m) {
      for (int64_t k = 0; k < taps; ++k) *out++ = from[(m * channels + c + 1) * taps - 1 - k];
    }
  }
  return to;
}

void run_batch(int dtype, const BatchImages& source, const BatchImages* residual, const BatchImages& result,
               const Conv2dBatchParams& params) {
  const int64_t extra = residual != nullptr ? residual->size : 0;
  at::parallel_for(0, groups_of(source.batch), 1, [&](int64_t begin, int64_t end) {
    const int64_t lanes = kernels().lanes;
    float* memory = static_cast<float*>(thread_scratch((source.size + result.size + extra) * lanes * kFloat));
    float *sums = memory + source.size * lanes, *added = sums + result.size * lanes;
    for (int64_t group = begin; group < end; ++group) {
      source.interleave(dtype, group, memory);
      if (residual != nullptr) residual->interleave(dtype, group, added);
      kernels().result(params, memory, residual != nullptr ? added : nullptr, sums);
      result.separate(dtype, group, sums);
    }
  });
}

}  // namespace

bool batch_computes(const Conv2dShape& s, Conv2dPass pass) {
  constexpr int64_t kMostBytes = 8 << 20;  // of interleaved images
  if (s.cuda || s.groups != 1 || s.channels == 0 || s.dtype == DType::kFloat64 || s.stride[0] != 1 ||
      s.stride[1] != 1 || s.dilation[0] != 1 || s.dilation[1] != 1) {
    return false;
  }
  const int64_t images =
      s.channels * s.height * s.width + s.result_channels * s.result_height() * s.result_width();
  return images * kernels().lanes * kFloat <= kMostBytes && kernels().computes(s.kernel_w, s.plane(pass)[1]);
}

double batch_filled(int64_t batch) {
  return static_cast<double>(batch) / static_cast<double>(groups_of(batch) * kernels().lanes);
}

bool batch_forward(const Conv2dForward& pass) {
  const Conv2dShape& s = pass.shape;
  const BatchImages source(pass.input, nullptr, Activation::kNone);
  const BatchImages result(pass.output, nullptr, Activation::kNone);
  std::optional<BatchImages> residual;
  if (pass.residual != nullptr) residual.emplace(*pass.residual, nullptr, Activation::kNone);
  const at::Tensor weight = arranged(pass.weight, false);
  const at::Tensor bias = pass.bias != nullptr ? pass.bias->to(at::kFloat).contiguous() : at::Tensor();
  run_batch(static_cast<int>(s.dtype), source, residual.has_value() ? &*residual : nullptr, result,
            {source.planes, result.planes, s.kernel_h, s.kernel_w, s.padding[0], s.padding[1],
             weight.const_data_ptr<float>(), bias.defined() ? bias.const_data_ptr<float>() : nullptr,
             pass.activation});
  return true;
}

bool batch_grad_input(const Conv2dBackward& pass, at::Tensor& grad_input) {
  const Conv2dShape& s = pass.shape;
  const BatchImages source(pass.grad_output, pass.output, pass.activation);
  const BatchImages result(grad_input, nullptr, Activation::kNone);
  const at::Tensor weight = arranged(pass.weight, true);
  run_batch(static_cast<int>(s.dtype), source, nullptr, result,
            {source.planes, result.planes, s.kernel_h, s.kernel_w, s.kernel_h - 1 - s.padding[0],
             s.kernel_w - 1 - s.padding[1], weight.const_data_ptr<float>(), nullptr, Activation::kNone});
  return true;
}

bool batch_grad_weight(const Conv2dBackward& pass, at::Tensor* grad_weight, at::Tensor* grad_bias) {
  constexpr int64_t kMostChunks = 16, kMostSums = 8 << 20;
  const Conv2dShape& s = pass.shape;
  const Conv2dBatchKernels& table = kernels();
  const int dtype = static_cast<int>(s.dtype);
  const BatchImages source(pass.input, nullptr, Activation::kNone);
  const BatchImages gradient(pass.grad_output, pass.output, pass.activation);
  const Conv2dBatchParams params{source.planes, gradient.planes, s.kernel_h, s.kernel_w,       s.padding[0],
                                 s.padding[1],  nullptr,         nullptr,    Activation::kNone};
  const int64_t lanes = table.lanes, groups = groups_of(s.batch);
  const int64_t weights = grad_weight != nullptr ? pass.weight.numel() : 0;
  const int64_t vectors = weights + s.result_channels, stride = vectors * lanes;
  // By the shape alone, so that the threads do not change a bit. Sums of `lanes` times the weight's size are
  // cleared and added up for each chunk, so that one group of images should not make a chunk.
  const int64_t chunks =
      std::clamp<int64_t>(std::min(groups / 2, kMostSums / std::max<int64_t>(1, stride)), 1, kMostChunks);
  const at::Tensor sums = empty({chunks, stride}, pass.weight.options().dtype(at::kFloat));
  float* partial = sums.mutable_data_ptr<float>();
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    float* memory = static_cast<float*>(thread_scratch((source.size + gradient.size) * lanes * kFloat));
    float* grads = memory + source.size * lanes;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      float* to = partial + chunk * stride;
      std::fill_n(to, stride, 0.0f);
      for (int64_t group = groups * chunk / chunks; group < groups * (chunk + 1) / chunks; ++group) {
        if (weights > 0) source.interleave(dtype, group, memory);
        gradient.interleave(dtype, group, grads);
        table.weight(params, memory, grads, weights > 0 ? to : nullptr,
                     grad_bias != nullptr ? to + weights * lanes : nullptr);
      }
    }
  });
  const at::Tensor total = empty({vectors}, sums.options());
  float* to = total.mutable_data_ptr<float>();
  at::parallel_for(0, vectors, 1024, [&](int64_t begin, int64_t end) {
    table.sum(partial + begin * lanes, chunks, stride, end - begin, to + begin);
  });
  if (grad_weight != nullptr) {
    *grad_weight = empty_like(pass.weight);
    grad_weight->copy_(total.narrow(0, 0, weights).view(pass.weight.sizes()));
  }
  if (grad_bias != nullptr) {
    *grad_bias = empty({s.result_channels}, pass.weight.options());
    grad_bias->copy_(total.narrow(0, weights, s.result_channels));
  }
  return true;
}

}  // namespace d2lfast::ops
