// Which of the modules in this folder the processor can run. Compiled for the baseline, so that every processor can run
// it.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "levels.h"

static PyObject* levels(PyObject*, PyObject*) {
  const int count = rmsnorm::supported_levels();
  PyObject* names = PyTuple_New(count);
  for (int i = 0; names && i < count; ++i) {
    PyObject* name = PyUnicode_FromString(rmsnorm::LEVELS[i].name);
    if (name)
      PyTuple_SET_ITEM(names, i, name);
    else
      Py_CLEAR(names);
  }
  return names;
}

static PyMethodDef methods[] = {
    {"levels", levels, METH_NOARGS, "The instruction-set levels that this processor runs, best last."}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
