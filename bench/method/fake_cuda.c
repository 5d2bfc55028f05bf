/* A CUDA driver with no GPU behind it: what Triton's launcher calls, of which it takes notes. */

#include "cuda.h"

#include <stdint.h>
#include <string.h>

enum { DEVICE = 77, MOST_KERNELS = 4096, MOST_PARAMETERS = 128 };

/* What a driver reads from a cubin; here cuobjdump does. */
typedef struct {
  int registers, local_bytes, parameters;
  int width[MOST_PARAMETERS];
} Kernel;

typedef struct {
  uint64_t stream;
  uint32_t grid[3], block[3], shared, cooperative, attributes;
  uint64_t value[MOST_PARAMETERS];
} Launch;

static Kernel kernels[MOST_KERNELS]; /* a handle is a position, from 1 */
static uint64_t loaded;
static Launch launch;
static unsigned admitted; /* programs of a cooperative grid; 0: any number */
static int refuses_to_load;

void fake_admit(unsigned programs) { admitted = programs; }

void fake_refuse_to_load(int refuses) { refuses_to_load = refuses; }

void fake_next_kernel(const Kernel *kernel) { kernels[loaded + 1] = *kernel; }

const Launch *fake_last_launch(void) { return &launch; }

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  if (refuses_to_load)
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (loaded + 2 == MOST_KERNELS || memcmp(image, "\177ELF", 4) != 0)
    return CUDA_ERROR_INVALID_IMAGE;
  *module = (CUmodule)++loaded;
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)module;
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  const Kernel *kernel = &kernels[(uint64_t)function];
  switch ((int)attribute) {
  case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = kernel->registers; return CUDA_SUCCESS;
  case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = kernel->local_bytes; return CUDA_SUCCESS;
  case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; return CUDA_SUCCESS;
  case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = 0; return CUDA_SUCCESS;
  default: return CUDA_ERROR_INVALID_VALUE;
  }
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  return attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

/* An H100's. */
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch ((int)attribute) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 227 * 1024; return CUDA_SUCCESS;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 228 * 1024; return CUDA_SUCCESS;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; return CUDA_SUCCESS;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; return CUDA_SUCCESS;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; return CUDA_SUCCESS;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; return CUDA_SUCCESS;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; return CUDA_SUCCESS;
  default: *value = 0; return CUDA_SUCCESS; /* clock rates and the like, which nothing here depends on */
  }
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  const Kernel *kernel = &kernels[(uint64_t)function];
  memset(&launch, 0, sizeof launch);
  launch.stream = (uint64_t)config->hStream;
  launch.grid[0] = config->gridDimX, launch.grid[1] = config->gridDimY, launch.grid[2] = config->gridDimZ;
  launch.block[0] = config->blockDimX, launch.block[1] = config->blockDimY, launch.block[2] = config->blockDimZ;
  launch.shared = config->sharedMemBytes;
  launch.attributes = config->numAttrs;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
      launch.cooperative = config->attrs[i].value.cooperative;
  if (launch.cooperative && admitted && config->gridDimX > admitted)
    return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
  /* As a driver does: as many as the cubin has, each as wide as the cubin says. */
  for (int i = 0; i < kernel->parameters; ++i)
    memcpy(&launch.value[i], parameters[i], kernel->width[i]);
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)data = pointer;
  return attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  switch ((int)error) { /* as CUDA says them */
  case CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE: *text = "too many blocks in cooperative launch"; break;
  case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: *text = "operation not permitted when stream is capturing"; break;
  default: *text = "refused by the fake driver";
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)1;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice *device) {
  *device = DEVICE;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

/* Linked by Triton's driver.c, called by nothing that a launch does. */
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuDriverGetVersion(int *version) { return CUDA_ERROR_NOT_SUPPORTED; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) { return CUDA_ERROR_NOT_SUPPORTED; }
