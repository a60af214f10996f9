/* A Vulkan driver that hides the subgroups of another, whose library DRIVER names: ONNX Runtime's WebGPU provider then
   attends as on Apple's and NVIDIA's devices. Loader interface: KhronosGroup/Vulkan-Loader, LoaderDriverInterface.md. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Function)(void);
typedef struct Chained {
  uint32_t type;
  struct Chained *next;
} Chained;

enum { SUBGROUP_PROPERTIES = 1000094000 };

static void (*properties)(void *, Chained *);

static void *of_driver(const char *name) {
  static void *library;
  if (!library) library = dlopen(getenv("DRIVER"), RTLD_NOW | RTLD_LOCAL);
  return library ? dlsym(library, name) : NULL;
}

static void without_subgroups(void *device, Chained *found) {
  properties(device, found);
  for (Chained *one = found->next; one; one = one->next)
    if (one->type == SUBGROUP_PROPERTIES) {
      uint32_t *fields = (uint32_t *)(one + 1); /* size, stages, operations, in all stages */
      memset(fields + 1, 0, 3 * sizeof *fields);
    }
}

static Function hiding(const char *name, Function real) {
  if (!real || strncmp(name, "vkGetPhysicalDeviceProperties2", 30)) return real;
  properties = (void (*)(void *, Chained *))real;
  return (Function)without_subgroups;
}

Function vk_icdGetInstanceProcAddr(void *instance, const char *name) {
  Function (*ask)(void *, const char *) = of_driver("vk_icdGetInstanceProcAddr");
  return ask ? hiding(name, ask(instance, name)) : NULL;
}

Function vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
  Function (*ask)(void *, const char *) = of_driver("vk_icdGetPhysicalDeviceProcAddr");
  return ask ? hiding(name, ask(instance, name)) : NULL;
}

int vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
  int (*ask)(uint32_t *) = of_driver("vk_icdNegotiateLoaderICDInterfaceVersion");
  return ask ? ask(version) : -9; /* VK_ERROR_INCOMPATIBLE_DRIVER */
}
