"""What is done: one folder per stage of a migration, its contract first."""
