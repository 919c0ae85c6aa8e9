/*
 * A stand-in for libcuda.so.1: enough of the CUDA driver API to ask whether the GPUs compute.
 *
 * As the real one does: no driver or no GPU is 100, a missing /dev/nvidia-uvm (module nvidia-uvm
 * not loaded) is 999, a kernel module of another version is 803.
 */
#include "lab_gpu.h"

enum {
    SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
    SYSTEM_DRIVER_MISMATCH = 803, UNKNOWN = 999
};

static struct gpu gpus[MAX_GPUS];
static int count = -1;

int cuInit(unsigned int flags) {
    if (flags)
        return INVALID_VALUE;
    int driver = lab_driver();
    if (driver == 0)
        return NO_DEVICE;
    if (driver < 0)
        return SYSTEM_DRIVER_MISMATCH;
    struct gpu found[MAX_GPUS];
    int here = lab_gpus(found);
    if (here == 0)
        return NO_DEVICE;
    if (!lab_exists("/dev/nvidia-uvm") || !lab_exists("/dev/nvidiactl"))
        return UNKNOWN;
    for (int i = 0; i < here; i++)
        if (strcmp(found[i].fault, "lost") == 0)
            return UNKNOWN;
    memcpy(gpus, found, sizeof gpus);
    count = here;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = lab_cuda_version();
    return SUCCESS;
}

int cuDeviceGetCount(int *out) {
    if (count < 0)
        return NOT_INITIALIZED;
    *out = count;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    if (count < 0)
        return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= count)
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    if (count < 0)
        return NOT_INITIALIZED;
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    snprintf(name, (size_t)length, "%s", lab_name(&gpus[device]));
    return SUCCESS;
}

static const struct { int code; const char *name, *text; } errors[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {SYSTEM_DRIVER_MISMATCH, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
     "system has unsupported display driver / cuda driver combination"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static int explain(int code, const char **out, int want_name) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) {
            *out = want_name ? errors[i].name : errors[i].text;
            return SUCCESS;
        }
    *out = NULL;
    return INVALID_VALUE;
}

int cuGetErrorString(int code, const char **out) { return explain(code, out, 0); }

int cuGetErrorName(int code, const char **out) { return explain(code, out, 1); }
