// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A stand-in for a Tesla T4: a device of that identity for QEMU's PCI bus, loaded into Debian's
 * unmodified QEMU with LD_PRELOAD, which gives `-device nvt4`.
 *
 * It has a T4's ids, class, capabilities and memory regions, so that firmware, kernel, lspci and
 * udev find what they find on a real machine. Behind the regions is no GPU: BOOT_0 says TU104,
 * everything else reads as zero.
 */
#include "qemu/osdep.h"
#include "qemu/module.h"
#include "qapi/error.h"
#include "hw/pci/pci.h"
#include "hw/pci/pcie.h"

enum { MIB = 1 << 20, BOOT_0 = 0x164000a1, CONFIG_NO_AUDIO = 0x488, POWER = 0x60, EXPRESS = 0x78 };

typedef struct T4 {
    PCIDevice parent;
    MemoryRegion registers, memory, channels;
} T4;

static uint64_t t4_read(void *unused, hwaddr address, unsigned size)
{
    return address == 0 ? BOOT_0 : 0;
}

static void t4_write(void *unused, hwaddr address, uint64_t value, unsigned size)
{
}

static const MemoryRegionOps t4_ops = {
    .read = t4_read, .write = t4_write, .endianness = DEVICE_LITTLE_ENDIAN,
};

static void t4_region(T4 *t4, MemoryRegion *region, int bar, int type, uint64_t size)
{
    g_autofree char *name = g_strdup_printf("nvt4-bar%d", bar);

    memory_region_init_io(region, OBJECT(t4), &t4_ops, t4, name, size);
    pci_register_bar(&t4->parent, bar, type, region);
}

static void t4_realize(PCIDevice *device, Error **error)
{
    T4 *t4 = (T4 *)device;
    int wide = PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH;

    t4_region(t4, &t4->registers, 0, 0, 16 * MIB);
    t4_region(t4, &t4->memory, 1, wide, 256 * MIB);
    t4_region(t4, &t4->channels, 3, wide, 32 * MIB);
    pci_config_set_interrupt_pin(device->config, 1);
    if (pci_add_capability(device, PCI_CAP_ID_PM, POWER, PCI_PM_SIZEOF, error) < 0 ||
        pcie_endpoint_cap_init(device, EXPRESS) < 0)
        return;
    pci_set_word(device->config + POWER + PCI_PM_PMC, 3); /* version */
    /* A T4 has no sound; the kernel looks for it here in cards that have. */
    device->config[CONFIG_NO_AUDIO + 3] = 1 << 1;
}

static void t4_class(ObjectClass *object, void *unused)
{
    PCIDeviceClass *class = PCI_DEVICE_CLASS(object);

    class->realize = t4_realize;
    class->vendor_id = 0x10de;
    class->device_id = 0x1eb8;
    class->revision = 0xa1;
    class->class_id = PCI_CLASS_DISPLAY_3D;
    class->subsystem_vendor_id = 0x10de;
    class->subsystem_id = 0x12a2;
}

static const TypeInfo t4_type = {
    .name = "nvt4",
    .parent = TYPE_PCI_DEVICE,
    .instance_size = sizeof(T4),
    .class_init = t4_class,
    .interfaces = (InterfaceInfo[]){{INTERFACE_PCIE_DEVICE}, {}},
};

static void t4_register(void)
{
    type_register_static(&t4_type);
}

type_init(t4_register)
