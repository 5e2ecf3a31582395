"""Where a `Cluster` comes from: the live record, a readable file, one line that invents it. Planning works on any."""
