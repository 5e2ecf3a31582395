"""The fleet as Prometheus sees it: read from Redis, told as metrics. It keeps nothing that it could not read again."""
