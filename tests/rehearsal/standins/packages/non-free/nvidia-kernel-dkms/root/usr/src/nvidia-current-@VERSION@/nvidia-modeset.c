// SPDX-License-Identifier: GPL-2.0-or-later
/* A stand-in for nvidia-modeset.ko: needs the module below it, does nothing. */
#include <linux/module.h>

int nvidia_standin_devices(void);

int nvidia_standin_modeset(void)
{
	return nvidia_standin_devices();
}
EXPORT_SYMBOL(nvidia_standin_modeset);

static int __init standin_init(void)
{
	return nvidia_standin_devices() > 0 ? 0 : -ENODEV;
}

static void __exit standin_exit(void)
{
}

module_init(standin_init);
module_exit(standin_exit);
MODULE_LICENSE("NVIDIA");
MODULE_DESCRIPTION("stand-in for NVIDIA's kernel module");
MODULE_VERSION(NV_VERSION_STRING);
