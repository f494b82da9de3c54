#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace d2lfast::ops {

// The output-layout rule of every 4-d operator: what comes in is what goes out. A channels_last input
// gives a channels_last output, any other gives a contiguous one (`d2lfast/_fake` has the same rule).
inline at::MemoryFormat layout_of(const at::Tensor& input) { return input.suggest_memory_format(); }

inline at::MemoryFormat layout(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// Whether torch takes a tensor for channels_last once it has made it so: a copy of [N,1,1,1] looks
// contiguous.
inline bool stays_channels_last(const at::Tensor& tensor) {
  if (tensor.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    return layout_of(tensor) == at::MemoryFormat::ChannelsLast;
  }
  return tensor.size(1) * tensor.size(2) * tensor.size(3) != 1;
}

// torch's rule for convolutions: channels_last if the images or the weight are, unless there are no images.
inline at::MemoryFormat conv2d_layout(const at::Tensor& input, const at::Tensor& weight) {
  if (input.numel() == 0) return at::MemoryFormat::Contiguous;
  const bool channels_last = layout_of(input) == at::MemoryFormat::ChannelsLast ||
                             layout_of(weight) == at::MemoryFormat::ChannelsLast;
  return layout(channels_last && (stays_channels_last(input) || stays_channels_last(weight)));
}

inline bool is_channels_last(at::MemoryFormat format) { return format == at::MemoryFormat::ChannelsLast; }

// Contiguous or channels_last, whichever `tensor` is already.
inline at::Tensor dense(const at::Tensor& tensor) {
  return tensor.is_contiguous() || tensor.is_contiguous(at::MemoryFormat::ChannelsLast) ? tensor
                                                                                        : tensor.contiguous();
}

// Operators accept unbatched [C,H,W] images; the code below the checks sees [1,C,H,W].
inline at::Tensor batched(const at::Tensor& image) { return image.dim() == 3 ? image.unsqueeze(0) : image; }

inline at::Tensor like_batching_of(const at::Tensor& input, const at::Tensor& result) {
  return input.dim() == 3 ? result.squeeze(0) : result;
}

}  // namespace d2lfast::ops
