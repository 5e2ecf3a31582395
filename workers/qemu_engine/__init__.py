"""engine=qemu: QEMU moves the RAM itself, and all around it (pairing, handover, journals, reports) stays as it is."""
