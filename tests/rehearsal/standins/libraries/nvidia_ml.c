/*
 * A stand-in for libnvidia-ml.so.1, so that the real pynvml and nvidia-smi's stand-in run.
 *
 * It looks at the node as lab_gpu.h does and answers for a healthy T4, or as its fault says:
 * "lost" is NVML_ERROR_GPU_IS_LOST on the handle, "init-fails" is a GPU that is not counted
 * (facts/nvidia.md 5 and 5.1). An Xid for a GPU is delivered as an event once if its number is
 * written to /run/lab/xid/SLOT, uncorrected ECC errors are the number in /run/lab/ecc/SLOT,
 * pages that wait for their retirement the one in /run/lab/pending/SLOT.
 */
#include <ctype.h>
#include <strings.h>
#include <sys/wait.h>
#include <time.h>

#include "lab_gpu.h"

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18
};

#define MIB (1024ULL * 1024ULL)
#define TOTAL (15360 * MIB) /* what a T4 with ECC on shows */
#define RESERVED (448 * MIB)
#define XID_CRITICAL 0x8ULL

typedef struct gpu *device;

struct pci_info {
    char legacy[16];
    unsigned int domain, bus, device, id, subsystem;
    char bus_id[32];
};

struct memory { unsigned long long total, free, used; };

struct memory_v2 {
    unsigned int version;
    unsigned long long total, reserved, free, used;
};

struct event {
    device device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
};

static struct gpu gpus[MAX_GPUS];
static int count, users;

/* -- the library ---------------------------------------------------------------------------- */

/* The device files are made by the setuid nvidia-modprobe, as the real library has them made. */
static void make_device_files(void) {
    char path[64], numbers[MAX_GPUS][8], *argv[2 * MAX_GPUS + 4] = {"nvidia-modprobe", "-c", "255"};
    int words = 3, missing = !lab_exists("/dev/nvidiactl"), status;
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "/dev/nvidia%u", gpus[i].minor);
        missing |= !lab_exists(path);
        snprintf(numbers[i], sizeof numbers[i], "%u", gpus[i].minor);
        argv[words++] = "-c";
        argv[words++] = numbers[i];
    }
    if (!missing || getenv("LAB_ROOT"))
        return;
    pid_t child = fork();
    if (child == 0) {
        execv("/usr/bin/nvidia-modprobe", argv);
        _exit(127);
    }
    if (child > 0)
        waitpid(child, &status, 0);
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    int driver = lab_driver();
    if (driver == 0)
        return DRIVER_NOT_LOADED;
    if (driver < 0)
        return LIB_RM_VERSION_MISMATCH;
    if (users++ == 0) {
        count = lab_gpus(gpus);
        make_device_files();
    }
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlInit(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (users == 0)
        return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "The operation was successful";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case 12: return "NVML Shared Library Not Found";
    case 13: return "Function Not Found";
    case GPU_IS_LOST: return "GPU is lost";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

static int text(char *out, unsigned int size, const char *value) {
    if (strlen(value) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *out, unsigned int size) {
    return users ? text(out, size, DRIVER_VERSION) : UNINITIALIZED;
}

int nvmlSystemGetNVMLVersion(char *out, unsigned int size) {
    char value[64];
    snprintf(value, sizeof value, "12.%s", DRIVER_VERSION);
    return text(out, size, value); /* answers without nvmlInit, as the real one */
}

int nvmlSystemGetCudaDriverVersion(int *version) {
    *version = lab_cuda_version();
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    return nvmlSystemGetCudaDriverVersion(version);
}

/* -- finding a GPU --------------------------------------------------------------------------- */

int nvmlDeviceGetCount_v2(unsigned int *out) {
    if (!users)
        return UNINITIALIZED;
    *out = (unsigned int)count;
    return SUCCESS;
}

int nvmlDeviceGetCount(unsigned int *out) { return nvmlDeviceGetCount_v2(out); }

static int handle(int index, device *out) {
    char path[128];
    /* Looked at again: a GPU may fall off the bus while we run. */
    snprintf(path, sizeof path, "/run/lab/faults/%s", gpus[index].slot);
    gpus[index].fault[0] = 0;
    lab_read(path, gpus[index].fault, sizeof gpus[index].fault);
    *out = &gpus[index];
    return strcmp(gpus[index].fault, "lost") == 0 ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device *out) {
    if (!users)
        return UNINITIALIZED;
    return index < (unsigned int)count ? handle((int)index, out) : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByIndex(unsigned int index, device *out) {
    return nvmlDeviceGetHandleByIndex_v2(index, out);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, device *out) {
    unsigned int domain, bus, dev;
    if (!users)
        return UNINITIALIZED;
    if (sscanf(id, "%x:%x:%x", &domain, &bus, &dev) != 3) {
        domain = 0;
        if (sscanf(id, "%x:%x", &bus, &dev) != 2)
            return INVALID_ARGUMENT;
    }
    for (int i = 0; i < count; i++)
        if (gpus[i].domain == domain && gpus[i].bus == bus && gpus[i].dev == dev)
            return handle(i, out);
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId(const char *id, device *out) {
    return nvmlDeviceGetHandleByPciBusId_v2(id, out);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device *out) {
    if (!users)
        return UNINITIALIZED;
    for (int i = 0; i < count; i++)
        if (strcasecmp(gpus[i].uuid, uuid) == 0)
            return handle(i, out);
    return NOT_FOUND;
}

/* -- what it is ------------------------------------------------------------------------------ */

int nvmlDeviceGetIndex(device gpu, unsigned int *out) {
    *out = (unsigned int)(gpu - gpus);
    return SUCCESS;
}

int nvmlDeviceGetMinorNumber(device gpu, unsigned int *out) {
    *out = gpu->minor;
    return SUCCESS;
}

int nvmlDeviceGetName(device gpu, char *out, unsigned int size) {
    return text(out, size, lab_name(gpu));
}

int nvmlDeviceGetUUID(device gpu, char *out, unsigned int size) {
    return text(out, size, gpu->uuid);
}

int nvmlDeviceGetPciInfo_v3(device gpu, struct pci_info *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", gpu->domain & 0xffff,
             gpu->bus & 0xff, gpu->dev & 0xff);
    snprintf(out->bus_id, sizeof out->bus_id, "%08X:%02X:%02X.0", gpu->domain, gpu->bus, gpu->dev);
    out->domain = gpu->domain;
    out->bus = gpu->bus;
    out->device = gpu->dev;
    out->id = gpu->device << 16 | 0x10de;
    out->subsystem = gpu->subsystem << 16 | 0x10de;
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v2(device gpu, struct pci_info *out) {
    return nvmlDeviceGetPciInfo_v3(gpu, out);
}

int nvmlDeviceGetPciInfo(device gpu, struct pci_info *out) {
    return nvmlDeviceGetPciInfo_v3(gpu, out);
}

int nvmlDeviceGetCudaComputeCapability(device gpu, int *major, int *minor) {
    *major = gpu->device == 0x20b5 ? 8 : 7;
    *minor = gpu->device == 0x1eb8 ? 5 : 0;
    return SUCCESS;
}

/* -- how it is ------------------------------------------------------------------------------- */

static int lost(device gpu) {
    device again;
    return handle((int)(gpu - gpus), &again) == GPU_IS_LOST;
}

int nvmlDeviceGetMemoryInfo(device gpu, struct memory *out) {
    if (lost(gpu))
        return GPU_IS_LOST;
    *out = (struct memory){.total = TOTAL, .free = TOTAL - RESERVED, .used = RESERVED};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(device gpu, struct memory_v2 *out) {
    if (lost(gpu))
        return GPU_IS_LOST;
    *out = (struct memory_v2){out->version, TOTAL, RESERVED, TOTAL - RESERVED, 0};
    return SUCCESS;
}

int nvmlDeviceGetTemperature(device gpu, int sensor, unsigned int *out) {
    if (sensor)
        return INVALID_ARGUMENT;
    *out = 37;
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetPowerUsage(device gpu, unsigned int *milliwatts) {
    *milliwatts = 9300;
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetEccMode(device gpu, unsigned int *current, unsigned int *pending) {
    *current = *pending = 1;
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(device gpu, int kind, int counter, unsigned long long *out) {
    char path[128], number[32] = "0";
    (void)counter;
    snprintf(path, sizeof path, "/run/lab/ecc/%s", gpu->slot);
    if (kind == 1) /* uncorrected */
        lab_read(path, number, sizeof number);
    *out = strtoull(number, NULL, 10);
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(device gpu, unsigned long long *out) {
    char path[128], number[32] = "1"; /* idle */
    snprintf(path, sizeof path, "/run/lab/slowed/%s", gpu->slot);
    lab_read(path, number, sizeof number);
    *out = strtoull(number, NULL, 10);
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device gpu, unsigned long long *out) {
    return nvmlDeviceGetCurrentClocksEventReasons(gpu, out);
}

int nvmlDeviceGetRetiredPages(device gpu, int cause, unsigned int *number, void *addresses) {
    (void)cause, (void)addresses;
    *number = 0;
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetRetiredPagesPendingStatus(device gpu, int *pending) {
    char path[128], number[32] = "0";
    snprintf(path, sizeof path, "/run/lab/pending/%s", gpu->slot);
    lab_read(path, number, sizeof number);
    *pending = atoi(number) != 0;
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

/* -- persistence and GSP --------------------------------------------------------------------- */

static void persistence_path(device gpu, char *out, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "/run/lab/persistence/%s", gpu->slot);
    lab_path(out, size, path);
}

int nvmlDeviceGetPersistenceMode(device gpu, int *out) {
    char path[PATH_MAX];
    persistence_path(gpu, path, sizeof path);
    *out = access(path, F_OK) == 0;
    return SUCCESS;
}

int nvmlDeviceSetPersistenceMode(device gpu, int wanted) {
    char path[PATH_MAX];
    persistence_path(gpu, path, sizeof path);
    if (!wanted)
        return unlink(path) == 0 || access(path, F_OK) != 0 ? SUCCESS : NO_PERMISSION;
    FILE *file = fopen(path, "w");
    if (!file)
        return NO_PERMISSION;
    fclose(file);
    return SUCCESS;
}

/* On unless the module was told otherwise, or its firmware is not installed. */
int nvmlDeviceGetGspFirmwareMode(device gpu, unsigned int *enabled, unsigned int *wanted) {
    char line[128], path[PATH_MAX];
    (void)gpu;
    *wanted = 1;
    *enabled = (unsigned int)lab_exists("/lib/firmware/nvidia/" DRIVER_VERSION "/gsp_tu10x.bin");
    lab_path(path, sizeof path, "/proc/driver/nvidia/params");
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "EnableGpuFirmware: 0", 20) == 0 && !isdigit((unsigned char)line[20]))
            *enabled = 0;
    if (file)
        fclose(file);
    return SUCCESS;
}

int nvmlDeviceGetGspFirmwareVersion(device gpu, char *out) {
    unsigned int enabled, wanted;
    nvmlDeviceGetGspFirmwareMode(gpu, &enabled, &wanted);
    if (!enabled)
        return NOT_SUPPORTED;
    strcpy(out, DRIVER_VERSION);
    return SUCCESS;
}

/* -- events ---------------------------------------------------------------------------------- */

int nvmlEventSetCreate(void **set) {
    *set = calloc(1, 1);
    return *set ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlEventSetFree(void *set) {
    free(set);
    return SUCCESS;
}

int nvmlDeviceGetSupportedEventTypes(device gpu, unsigned long long *types) {
    *types = XID_CRITICAL | 0x1 | 0x2; /* and single and double bit ECC errors */
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceRegisterEvents(device gpu, unsigned long long types, void *set) {
    (void)types, (void)set;
    return lost(gpu) ? GPU_IS_LOST : SUCCESS;
}

static int pending_xid(struct event *out) {
    char path[128], full[PATH_MAX], number[32];
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "/run/lab/xid/%s", gpus[i].slot);
        if (!lab_read(path, number, sizeof number))
            continue;
        lab_path(full, sizeof full, path);
        unlink(full);
        *out = (struct event){&gpus[i], XID_CRITICAL, strtoull(number, NULL, 10), ~0U, ~0U};
        return 1;
    }
    return 0;
}

int nvmlEventSetWait_v2(void *set, struct event *out, unsigned int milliseconds) {
    struct timespec pause = {0, 50 * 1000 * 1000};
    (void)set;
    for (unsigned int waited = 0;; waited += 50) {
        if (pending_xid(out))
            return SUCCESS;
        if (waited >= milliseconds)
            return TIMEOUT;
        nanosleep(&pause, NULL);
    }
}

int nvmlEventSetWait(void *set, struct event *out, unsigned int milliseconds) {
    return nvmlEventSetWait_v2(set, out, milliseconds);
}
