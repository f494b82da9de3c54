#pragma once

#include <Python.h>

namespace d2lfast {

// `recurrent_generate(input, h, c, parameters, names, mode, bias)` of the module _C.
PyObject* py_recurrent_generate(PyObject* self, PyObject* const* args, Py_ssize_t count);

}  // namespace d2lfast
