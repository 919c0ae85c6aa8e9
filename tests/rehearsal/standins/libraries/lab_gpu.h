/*
 * What the stand-in libraries share: which GPUs the node has, looked up anew on every start.
 *
 * Stands in for the kernel driver's ioctls, which a node without a kernel of its own cannot have.
 * A GPU is what nvidia.ko would have bound: vendor 10de, class 0300 or 0302, `driver` link to
 * nvidia. LAB_ROOT, if set, is put in front of every path, so that a test can use a folder.
 */
#ifndef LAB_GPU_H
#define LAB_GPU_H

#include <dirent.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_GPUS 16

struct gpu {
    char slot[16]; /* 0000:03:00.0, as in sysfs */
    unsigned int domain, bus, dev, device, subsystem, minor;
    char uuid[64];
    char fault[32]; /* a word of hardware.json: init-fails, lost */
};

static __attribute__((unused)) void lab_path(char *out, size_t size, const char *path) {
    const char *root = getenv("LAB_ROOT");
    snprintf(out, size, "%s%s", root ? root : "", path);
}

/* The first line of a file, without its newline; 0 if there is none. */
static __attribute__((unused)) int lab_read(const char *path, char *out, size_t size) {
    char full[PATH_MAX];
    FILE *file;
    lab_path(full, sizeof full, path);
    if (!(file = fopen(full, "r")))
        return 0;
    if (!fgets(out, (int)size, file))
        out[0] = 0;
    fclose(file);
    out[strcspn(out, "\n")] = 0;
    return 1;
}

static __attribute__((unused)) int lab_exists(const char *path) {
    char full[PATH_MAX];
    lab_path(full, sizeof full, path);
    return access(full, F_OK) == 0;
}

static unsigned int lab_number(const char *folder, const char *name) {
    char path[512], text[64] = "0";
    snprintf(path, sizeof path, "%s/%s", folder, name);
    lab_read(path, text, sizeof text);
    return (unsigned int)strtoul(text, NULL, 16);
}

/* The same sum as uuid() of lab_kernel.py, so that /proc/driver/nvidia and NVML agree. */
static void lab_uuid(struct gpu *gpu) {
    uint64_t sum = 0xcbf29ce484222325ULL;
    char digits[40], *next = digits;
    for (int turn = 0; turn < 2; turn++) {
        char text[32];
        snprintf(text, sizeof text, "%d%s", turn, gpu->slot);
        for (const char *c = text; *c; c++)
            sum = (sum ^ (unsigned char)*c) * 0x100000001b3ULL;
        next += sprintf(next, "%016llx", (unsigned long long)sum);
    }
    snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-%.8s-%.4s-%.4s-%.4s-%.12s", digits, digits + 8,
             digits + 12, digits + 16, digits + 20);
}

static int lab_is_gpu(const char *folder) {
    char path[PATH_MAX], full[PATH_MAX], link[PATH_MAX];
    unsigned int class = lab_number(folder, "class") >> 8;
    ssize_t length;
    if (lab_number(folder, "vendor") != 0x10de || (class != 0x0300 && class != 0x0302))
        return 0;
    snprintf(path, sizeof path, "%s/driver", folder);
    lab_path(full, sizeof full, path);
    if ((length = readlink(full, link, sizeof link - 1)) < 0)
        return 0;
    link[length] = 0;
    const char *name = strrchr(link, '/');
    return strcmp(name ? name + 1 : link, "nvidia") == 0;
}

static int lab_order(const void *one, const void *other) {
    return strcmp(((const struct gpu *)one)->slot, ((const struct gpu *)other)->slot);
}

/* The GPUs that answer, in bus order. One whose init fails is not among them, but keeps its
 * minor: "No devices were found" is what nvidia-smi says then. */
static __attribute__((unused)) int lab_gpus(struct gpu *found) {
    char full[PATH_MAX], folder[512], path[512];
    struct dirent *entry;
    int count = 0, answering = 0;
    lab_path(full, sizeof full, "/sys/bus/pci/devices");
    DIR *devices = opendir(full);
    if (!devices)
        return 0;
    while (count < MAX_GPUS && (entry = readdir(devices))) {
        struct gpu *gpu = &found[count];
        snprintf(folder, sizeof folder, "/sys/bus/pci/devices/%s", entry->d_name);
        if (entry->d_name[0] == '.' || strlen(entry->d_name) > 12 || !lab_is_gpu(folder))
            continue;
        memset(gpu, 0, sizeof *gpu);
        snprintf(gpu->slot, sizeof gpu->slot, "%.12s", entry->d_name);
        sscanf(gpu->slot, "%x:%x:%x", &gpu->domain, &gpu->bus, &gpu->dev);
        gpu->device = lab_number(folder, "device");
        gpu->subsystem = lab_number(folder, "subsystem_device");
        snprintf(path, sizeof path, "/run/lab/faults/%s", gpu->slot);
        lab_read(path, gpu->fault, sizeof gpu->fault);
        lab_uuid(gpu);
        count++;
    }
    closedir(devices);
    qsort(found, (size_t)count, sizeof *found, lab_order);
    for (int i = 0; i < count; i++) {
        found[i].minor = (unsigned int)i;
        if (strcmp(found[i].fault, "init-fails") != 0)
            found[answering++] = found[i];
    }
    return answering;
}

static __attribute__((unused)) const char *lab_name(const struct gpu *gpu) {
    switch (gpu->device) {
    case 0x1eb8: return "Tesla T4";
    case 0x1db6: return "Tesla V100-PCIE-32GB";
    case 0x20b5: return "NVIDIA A100 80GB PCIe";
    default: return "NVIDIA Graphics Device";
    }
}

/* 0 not loaded, 1 loaded in this library's version, -1 in another one. */
static __attribute__((unused)) int lab_driver(void) {
    char version[64];
    if (!lab_read("/sys/module/nvidia/version", version, sizeof version))
        return 0;
    return strcmp(version, DRIVER_VERSION) == 0 ? 1 : -1;
}

/* CUDA 12.2 came with 535, 12.4 with 550, 12.8 with 570, 13.0 with 580, 13.2 with 595. */
static __attribute__((unused)) int lab_cuda_version(void) {
    return DRIVER_MAJOR >= 595   ? 13020
           : DRIVER_MAJOR >= 580 ? 13000
           : DRIVER_MAJOR >= 570 ? 12080
           : DRIVER_MAJOR >= 550 ? 12040
                                 : 12020;
}

#endif
