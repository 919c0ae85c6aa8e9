"""The slow lane: a virtual machine with Debian's own kernel and an emulated T4 on its PCI bus.

    card      the T4, a device for this machine's QEMU  (.cache/card/nvt4-…, half a minute)
    disk      Debian with its real kernel, nouveau in its initramfs, GRUB, gpuboot
    guest     QEMU without KVM: a few minutes for what a real machine does in a few seconds
    story     what is seen of it: nouveau holds the card, one reboot, the driver, the Node

What a container cannot have is real here: the kernel, its modules and modprobe, udev, the
initramfs, GRUB, the reboot. Stand-ins: the card, NVIDIA's modules and libraries, the cluster.
"""
