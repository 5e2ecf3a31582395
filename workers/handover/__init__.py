"""Who owns the guest: two-phase handover, decided by the source, durable in each host's journal."""
