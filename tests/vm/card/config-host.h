/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What of QEMU's configuration its headers ask for; the rest of it is the build's alone. */
#define CONFIG_POSIX 1
#define CONFIG_LINUX 1
#define CONFIG_INT128 1
#define CONFIG_ATOMIC64 1
#define HOST_X86_64 1
#define CONFIG_IOVEC 1
