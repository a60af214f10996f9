/* A device that computes nothing: enough of CUDA's libraries for ONNX Runtime's provider to open sessions and to call
   its kernels on a machine without a GPU. Memory of the device is the host's, copies are copies, every launch succeeds
   and leaves its results as they were. Functions that are not here return 0: tests/field/cuda_stub.py adds them. */
#include <stdlib.h>
#include <string.h>

#include "driver_types.h"
#include "vector_types.h"

enum { MAJOR = 9, MINOR = 0, PROCESSORS = 132, SHARED = 232448 }; /* an H100's */
static const size_t TOTAL = (size_t)16 << 30;

/* What is asked about the device */

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = TOTAL; return 0; }

int cudaGetDeviceProperties(struct cudaDeviceProp *of, int device) {
  memset(of, 0, sizeof *of);
  strcpy(of->name, "stub");
  of->major = MAJOR;
  of->minor = MINOR;
  of->multiProcessorCount = PROCESSORS;
  of->totalGlobalMem = TOTAL;
  of->sharedMemPerBlock = 49152;
  of->sharedMemPerBlockOptin = SHARED;
  of->sharedMemPerMultiprocessor = SHARED + 1024;
  of->regsPerBlock = of->regsPerMultiprocessor = 65536;
  of->warpSize = 32;
  of->maxThreadsPerBlock = 1024;
  of->maxThreadsPerMultiProcessor = 2048;
  of->maxBlocksPerMultiProcessor = 32;
  of->maxThreadsDim[0] = of->maxThreadsDim[1] = 1024;
  of->maxThreadsDim[2] = 64;
  of->maxGridSize[0] = 2147483647;
  of->maxGridSize[1] = of->maxGridSize[2] = 65535;
  of->l2CacheSize = 50 << 20;
  of->totalConstMem = 65536;
  of->concurrentKernels = of->unifiedAddressing = of->managedMemory = 1;
  return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = MAJOR; break;
    case cudaDevAttrComputeCapabilityMinor: *value = MINOR; break;
    case cudaDevAttrMultiProcessorCount: *value = PROCESSORS; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED + 1024; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 1;
  }
  return 0;
}

int cudaPointerGetAttributes(struct cudaPointerAttributes *of, const void *pointer) {
  memset(of, 0, sizeof *of);
  of->type = cudaMemoryTypeDevice;
  of->devicePointer = (void *)pointer;
  return 0;
}

int cudaFuncGetAttributes(struct cudaFuncAttributes *of, const void *function) {
  memset(of, 0, sizeof *of);
  of->maxThreadsPerBlock = 1024;
  of->binaryVersion = of->ptxVersion = 10 * MAJOR + MINOR;
  of->maxDynamicSharedSizeBytes = SHARED;
  return 0;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int b, size_t s, unsigned g) {
  *blocks = 1;
  return 0;
}

const char *cudaGetErrorName(int error) { return "stub"; }
const char *cudaGetErrorString(int error) { return "stub"; }
const char *cublasGetStatusName(int status) { return "stub"; }
const char *cublasGetStatusString(int status) { return "stub"; }

/* A function of the driver, by name: any returns 0 */

static int nothing(void) { return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, int *status) {
  *function = (void *)nothing;
  if (status) *status = cudaDriverEntryPointSuccess;
  return 0;
}

/* Memory */

int cudaMalloc(void **pointer, size_t size) {
  if (posix_memalign(pointer, 256, size ? size : 256)) return cudaErrorMemoryAllocation;
  memset(*pointer, 0, size);
  return 0;
}
int cudaMallocHost(void **pointer, size_t size) { return cudaMalloc(pointer, size); }
int cudaHostAlloc(void **pointer, size_t size, unsigned flags) { return cudaMalloc(pointer, size); }
int cudaMallocFromPoolAsync(void **pointer, size_t size, void *pool, void *stream) { return cudaMalloc(pointer, size); }
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaFreeHost(void *pointer) { free(pointer); return 0; }
int cudaFreeAsync(void *pointer, void *stream) { free(pointer); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { memmove(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { memmove(to, from, size); return 0; }
int cudaMemcpy2DAsync(char *to, size_t pitch, const char *from, size_t step, size_t width, size_t rows, int kind, void *stream) {
  for (size_t row = 0; row < rows; row++) memmove(to + row * pitch, from + row * step, width);
  return 0;
}
int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset, int kind) { memset(to, 0, size); return 0; }
int cudaMemset(void *at, int value, size_t size) { memset(at, value, size); return 0; }
int cudaMemsetAsync(void *at, int value, size_t size, void *stream) { memset(at, value, size); return 0; }
int cudaMemPoolGetAttribute(void *pool, int attribute, void *value) { memset(value, 0, 8); return 0; }

/* Handles: each a block of zeros */

static int made(void **handle) { *handle = calloc(1, 4096); return 0; }
int cudaStreamCreate(void **handle) { return made(handle); }
int cudaStreamCreateWithFlags(void **handle, unsigned flags) { return made(handle); }
int cudaEventCreate(void **handle) { return made(handle); }
int cudaEventCreateWithFlags(void **handle, unsigned flags) { return made(handle); }
int cudaMemPoolCreate(void **handle, const void *properties) { return made(handle); }
int cudaGraphInstantiate(void **handle, void *graph, unsigned long long flags) { return made(handle); }
int cudaStreamEndCapture(void *stream, void **handle) { return made(handle); }
int cudaLibraryGetKernel(void **handle, void *library, const char *name) { return made(handle); }
int cudaLibraryLoadData(void **handle, const void *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m) { return made(handle); }
int cublasCreate_v2(void **handle) { return made(handle); }
int cublasLtCreate(void **handle) { return made(handle); }
int cublasLtMatmulDescCreate(void **handle) { return made(handle); }
int cublasLtMatmulPreferenceCreate(void **handle) { return made(handle); }
int cublasLtMatrixLayoutCreate(void **handle) { return made(handle); }
int cublasLtMatrixTransformDescCreate(void **handle) { return made(handle); }

int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaEventElapsedTime(float *milliseconds, void *from, void *to) { *milliseconds = 1; return 0; }
int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *p, int n, void *results, int *found) {
  memset(results, 0, 128);
  *found = 1;
  return 0;
}

/* Launches */

void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
int __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return 0; }
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
  grid->x = grid->y = grid->z = block->x = block->y = block->z = 1;
  *shared = 0;
  *stream = 0;
  return 0;
}
