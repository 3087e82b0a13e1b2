/* A libcuda.so.1 without a device: it accepts what Triton asks of a driver, and keeps the last launch for launches.py. */

#include <cuda.h>
#include <string.h>

#define MOST 64

struct {
  int count, sizes[MOST]; /* of the parameters, in bytes; set before a launch */
  unsigned long long parameters[MOST];
  unsigned int grid[3], threads, shared;
  unsigned long long function, stream;
  int launches;
  char name[256]; /* of the function that was asked for last */
  unsigned long long handle;
} recorded;

#define OK(call) \
  CUresult call { return CUDA_SUCCESS; }

OK(cuInit(unsigned int flags))
OK(cuCtxSetCurrent(CUcontext context))
OK(cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int value))
OK(cuFuncSetCacheConfig(CUfunction f, CUfunc_cache config))
OK(cuCtxSetLimit(CUlimit limit, size_t value))

#define GIVES(call, to, value) \
  CUresult call { \
    *to = value; \
    return CUDA_SUCCESS; \
  }

GIVES(cuGetErrorString(CUresult error, const char **text), text, "an error of the recording driver")
GIVES(cuDriverGetVersion(int *version), version, 13000)
GIVES(cuDeviceGet(CUdevice *device, int ordinal), device, ordinal)
GIVES(cuCtxGetCurrent(CUcontext *context), context, (CUcontext)1)
GIVES(cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device), context, (CUcontext)1)
GIVES(cuModuleLoadData(CUmodule *module, const void *image), module, (CUmodule)1)
GIVES(cuOccupancyMaxActiveClusters(int *count, CUfunction f, const CUlaunchConfig *config), count, 1)
GIVES(cuCtxGetLimit(size_t *value, CUlimit limit), value, 0)

CUresult cuModuleGetFunction(CUfunction *f, CUmodule module, const char *name) {
  strncpy(recorded.name, name, sizeof recorded.name - 1);
  *f = (CUfunction)(recorded.handle += 0x123456789abcd0);
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *to, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)to = pointer;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT ? 132 : 227 << 10; /* shared memory of sm_90 */
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **parameters, void **extra) {
  ++recorded.launches;
  recorded.grid[0] = config->gridDimX, recorded.grid[1] = config->gridDimY, recorded.grid[2] = config->gridDimZ;
  recorded.threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  recorded.shared = config->sharedMemBytes;
  recorded.function = (unsigned long long)f, recorded.stream = (unsigned long long)config->hStream;
  memset(recorded.parameters, 0, sizeof recorded.parameters);
  for (int i = 0; i < recorded.count; ++i) memcpy(&recorded.parameters[i], parameters[i], recorded.sizes[i]);
  return CUDA_SUCCESS;
}
