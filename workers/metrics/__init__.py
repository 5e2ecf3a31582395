"""What is measured: names, timelines, the exporter."""
