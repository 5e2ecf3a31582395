"""One migration or one job as a page: what happened when, how much moved, what was decided and why."""
