/*
 * A stand-in for NVIDIA's setuid nvidia-modprobe, with its meaning of the options:
 * -c MINOR (may repeat) makes /dev/nvidiaMINOR, and /dev/nvidiactl for 255, after loading nvidia;
 * with -u it loads nvidia-uvm instead and -c MINOR makes /dev/nvidia-uvm and -uvm-tools, **not**
 * /dev/nvidiaMINOR; -m loads nvidia-modeset. Each file gets its link in /dev/char, as the real one
 * makes them since 525.105.17, also where the file is there already. It prints nothing when it fails, and exits with 1.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NVIDIA = 195, UVM = 511, CONTROL = 255 }; /* uvm's major is assigned at run time */

static int load(char *module) {
    char path[64], *argv[] = {"modprobe", module, NULL}, *environment[] = {
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    int status = 1;
    snprintf(path, sizeof path, "/sys/module/%s", module);
    for (char *c = path; *c; c++)
        if (*c == '-')
            *c = '_';
    if (access(path, F_OK) == 0)
        return 1;
    pid_t child = fork();
    if (child == 0) {
        if (setgid(0) || setuid(0) || !freopen("/dev/null", "w", stderr))
            _exit(1);
        execve("/sbin/modprobe", argv, environment);
        _exit(1);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        return 0;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* By the device's numbers, as runc and systemd look for it. A container may have no such folder. */
static int link_to(const char *path, unsigned int major, unsigned int minor) {
    char name[64], target[64];
    snprintf(name, sizeof name, "/dev/char/%u:%u", major, minor);
    snprintf(target, sizeof target, "../%s", path + strlen("/dev/"));
    mkdir("/dev/char", 0755);
    unlink(name);
    return symlink(target, name) == 0;
}

static int node(const char *path, unsigned int major, unsigned int minor) {
    struct stat there;
    dev_t wanted = makedev(major, minor);
    if (stat(path, &there) == 0) {
        if (S_ISCHR(there.st_mode) && there.st_rdev == wanted)
            return link_to(path, major, minor);
        unlink(path);
    }
    return mknod(path, S_IFCHR | 0666, wanted) == 0 && chmod(path, 0666) == 0 &&
           link_to(path, major, minor);
}

static int device(unsigned int minor, int uvm) {
    char path[64];
    if (uvm)
        return node("/dev/nvidia-uvm", UVM, minor) && node("/dev/nvidia-uvm-tools", UVM, minor + 1);
    snprintf(path, sizeof path, "/dev/nvidia%u", minor);
    return node(minor == CONTROL ? "/dev/nvidiactl" : path, NVIDIA, minor);
}

int main(int argc, char *argv[]) {
    static const struct option options[] = {
        {"create-nvidia-device-file", required_argument, NULL, 'c'},
        {"unified-memory", no_argument, NULL, 'u'},
        {"modeset", no_argument, NULL, 'm'},
        {"version", no_argument, NULL, 'v'},
        {NULL, 0, NULL, 0},
    };
    unsigned int minors[64];
    int letter, count = 0, uvm = 0, modeset = 0;
    while ((letter = getopt_long(argc, argv, "c:umv", options, NULL)) != -1) {
        if (letter == 'c' && count < 64)
            minors[count++] = (unsigned int)atoi(optarg + (*optarg == '='));
        else if (letter == 'u')
            uvm = 1;
        else if (letter == 'm')
            modeset = 1;
        else if (letter == 'v')
            return puts("nvidia-modprobe:  version " DRIVER_VERSION) < 0;
        else
            return 1;
    }
    umask(0);
    if (!load(uvm ? "nvidia-uvm" : "nvidia"))
        return 1;
    for (int i = 0; i < count; i++)
        if (!device(minors[i], uvm))
            return 1;
    if (modeset && (!load("nvidia-modeset") || !node("/dev/nvidia-modeset", NVIDIA, 254)))
        return 1;
    return 0;
}
