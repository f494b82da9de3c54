#include "generate_binding.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <vector>

#include "ops/autocast.h"
#include "ops/cpu/recurrent_generate.h"
#include "ops/differentiable.h"

// Parsing the arguments of an operator costs more than a step of generation, so that the step has an entry of
// its own. It returns None wherever the dispatcher could have something to say: gradients, autocast, modes,
// function transforms, subclasses. The caller then calls the operator.

namespace d2lfast {

namespace {

bool nothing_but_the_kernel() {
  if (at::GradMode::is_enabled() || ops::forward_mode() || c10::impl::dispatch_mode_enabled()) return false;
  if (at::impl::PythonTorchFunctionTLS::stack_len() > 0) return false;
  const auto local = c10::impl::tls_local_dispatch_key_set();
  constexpr c10::DispatchKeySet usual{c10::DispatchKey::BackendSelect, c10::DispatchKey::ADInplaceOrView};
  return (local.included_ - usual).empty() && !ops::Autocast::enabled(at::kCPU);
}

}  // namespace

PyObject* py_recurrent_generate(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 7 || !nothing_but_the_kernel()) Py_RETURN_NONE;
  if (!THPVariable_CheckExact(args[0]) || !THPVariable_CheckExact(args[1])) Py_RETURN_NONE;
  const bool lstm = args[2] != Py_None;
  if (lstm && !THPVariable_CheckExact(args[2])) Py_RETURN_NONE;
  if (!PyDict_CheckExact(args[3]) || !PyList_CheckExact(args[4])) Py_RETURN_NONE;
  const Py_ssize_t size = PyList_GET_SIZE(args[4]);
  std::vector<at::Tensor> weights;
  weights.reserve(static_cast<size_t>(size));
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* weight = PyDict_GetItem(args[3], PyList_GET_ITEM(args[4], i));
    if (weight == nullptr || !THPVariable_CheckExact(weight)) Py_RETURN_NONE;
    weights.push_back(THPVariable_Unpack(weight));
  }
  const at::Tensor cell = lstm ? THPVariable_Unpack(args[2]) : at::Tensor();
  auto result = ops::recurrent_generate(THPVariable_Unpack(args[0]), THPVariable_Unpack(args[1]),
                                        lstm ? &cell : nullptr, weights, PyLong_AsLong(args[5]),
                                        PyObject_IsTrue(args[6]) == 1);
  if (!result.has_value()) Py_RETURN_NONE;
  auto [output, h_n, c_n] = std::move(*result);
  PyObject* tuple = PyTuple_New(lstm ? 3 : 2);
  if (tuple == nullptr) return nullptr;
  PyTuple_SET_ITEM(tuple, 0, THPVariable_Wrap(std::move(output)));
  PyTuple_SET_ITEM(tuple, 1, THPVariable_Wrap(std::move(h_n)));
  if (lstm) PyTuple_SET_ITEM(tuple, 2, THPVariable_Wrap(std::move(c_n)));
  return tuple;
  END_HANDLE_TH_ERRORS
}

}  // namespace d2lfast
