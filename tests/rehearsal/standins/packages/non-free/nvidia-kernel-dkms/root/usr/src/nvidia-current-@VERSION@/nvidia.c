// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A stand-in for nvidia.ko: takes NVIDIA's display devices on the PCI bus, shows its version in
 * /proc/driver/nvidia, refuses to stay if it got none. Real enough for DKMS, modinfo and depmod,
 * and to be loaded by a kernel of its own (QEMU).
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

static int NVreg_EnableGpuFirmware = 18;
module_param(NVreg_EnableGpuFirmware, int, 0444);

static atomic_t probed = ATOMIC_INIT(0);
static struct proc_dir_entry *folder;

int nvidia_standin_devices(void)
{
	return atomic_read(&probed);
}
EXPORT_SYMBOL(nvidia_standin_devices);

static int version_show(struct seq_file *out, void *unused)
{
	seq_puts(out, "NVRM version: NVIDIA UNIX x86_64 Kernel Module  " NV_VERSION_STRING
		 "  Mon Feb  2 10:12:13 UTC 2026\n");
	return 0;
}

static int nv_probe(struct pci_dev *device, const struct pci_device_id *id)
{
	int error = pcim_enable_device(device);

	if (!error)
		atomic_inc(&probed);
	return error;
}

static const struct pci_device_id nv_ids[] = {
	{PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, PCI_ANY_ID), .class = 0x030000, .class_mask = 0xffffff},
	{PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, PCI_ANY_ID), .class = 0x030200, .class_mask = 0xffffff},
	{}
};
MODULE_DEVICE_TABLE(pci, nv_ids);

static struct pci_driver nv_driver = {
	.name = "nvidia", .id_table = nv_ids, .probe = nv_probe,
};

static int __init nv_init(void)
{
	int error = pci_register_driver(&nv_driver);

	if (error)
		return error;
	if (atomic_read(&probed) == 0) {
		pr_err("NVRM: No NVIDIA GPU found.\n");
		pci_unregister_driver(&nv_driver);
		return -ENODEV;
	}
	folder = proc_mkdir("driver/nvidia", NULL);
	if (folder)
		proc_create_single("version", 0444, folder, version_show);
	pr_info("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  " NV_VERSION_STRING "\n");
	return 0;
}

static void __exit nv_exit(void)
{
	proc_remove(folder);
	pci_unregister_driver(&nv_driver);
}

module_init(nv_init);
module_exit(nv_exit);
MODULE_LICENSE("NVIDIA");
MODULE_DESCRIPTION("stand-in for NVIDIA's kernel module");
MODULE_VERSION(NV_VERSION_STRING);
