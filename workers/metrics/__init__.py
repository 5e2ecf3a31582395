"""What is measured: names, timelines, and a worker's own exporter (the fleet's is tasks/exporter)."""
