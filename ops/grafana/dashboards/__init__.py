"""The dashboards of Grafana, written down as code: one file each, `page` has what they are made of."""
