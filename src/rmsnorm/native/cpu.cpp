// Which of the modules in this folder the processor can run. Compiled for the baseline, so that every processor can run
// it.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyObject* levels(PyObject*, PyObject*) {
#if defined(__x86_64__)
  __builtin_cpu_init();  // also asks whether the operating system saves the wide registers
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
                  __builtin_cpu_supports("movbe");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) return Py_BuildValue("(sss)", "x86-64", "x86-64-v3", "x86-64-v4");
  if (v3) return Py_BuildValue("(ss)", "x86-64", "x86-64-v3");
  return Py_BuildValue("(s)", "x86-64");
#else
  return Py_BuildValue("(s)", "baseline");
#endif
}

static PyMethodDef methods[] = {
    {"levels", levels, METH_NOARGS, "The instruction-set levels that this processor runs, best last."}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cpu", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&module); }
